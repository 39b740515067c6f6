"""Evaluation of a model over a data set: durable, resumable, over any number of processes."""

from .models import LoadedModel, load_model
from .results import Evaluation
from .runner import evaluate
from .sources import Example, Source, load_source

__all__ = [
    "Evaluation",
    "Example",
    "LoadedModel",
    "Source",
    "evaluate",
    "load_model",
    "load_source",
]
