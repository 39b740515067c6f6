"""Evaluation of a model over a data set: durable, resumable, over any number of processes."""

from .compare import Comparison, compare
from .models import LoadedModel, load_model
from .results import Evaluation
from .runner import evaluate
from .selfcheck import SelfCheck, selfcheck
from .sources import Example, Source, load_source

__all__ = [
    "Comparison",
    "Evaluation",
    "Example",
    "LoadedModel",
    "SelfCheck",
    "Source",
    "compare",
    "evaluate",
    "load_model",
    "load_source",
    "selfcheck",
]
