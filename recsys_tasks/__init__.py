"""Nightcart: a shop's event log in, a checked, versioned table of recommendations for every customer out."""
