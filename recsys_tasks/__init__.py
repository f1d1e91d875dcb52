"""Nightcart: a shop's event log in, a checked, versioned table of recommendations for every customer out."""

import os

# TensorFlow Recommenders needs Keras 2, and TensorFlow asks for it once, when it is first imported by anything.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
