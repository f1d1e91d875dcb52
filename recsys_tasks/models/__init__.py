"""The models, by name. Each is imported when it is asked for, so listing them costs nothing."""

from importlib import import_module

from recsys_tasks.models.base import Material, Model, Ranked

__all__ = ["BASELINES", "MODELS", "STAGES", "Material", "Model", "Ranked", "model_class"]

MODELS = {
    "popular": "recsys_tasks.models.popular:Popular",
    "repeat": "recsys_tasks.models.repeat:Repeat",
    "item_knn": "recsys_tasks.models.item_knn:ItemKNN",
    "ease": "recsys_tasks.models.ease:EASE",
    "two_tower": "recsys_tasks.models.two_tower:TwoTower",
    "vaecf": "recsys_tasks.models.vaecf:VAECF",
    "content": "recsys_tasks.models.content:Content",
    "sasrec": "recsys_tasks.models.sasrec:SASRec",
    "ranker": "recsys_tasks.models.ranker:Ranker",
    "transformer_dqn": "recsys_tasks.models.transformer_dqn:TransformerDQN",
}
BASELINES = ("popular", "repeat", "item_knn", "ease")
"""Trained every night: no number is shown without them beside it."""
STAGES = {"ranker": 2, "transformer_dqn": 3}
"""Models trained after those of the stage before, which are their sources; all others are of the first stage."""


def model_class(name: str) -> type[Model]:
    """Return the class of a model in ``MODELS``."""
    module, _, attribute = MODELS[name].partition(":")
    return getattr(import_module(module), attribute)
