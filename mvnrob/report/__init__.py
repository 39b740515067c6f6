"""What a finished evaluation found: a self-contained page, pictures, and tables for other tools."""

from .page import report
from .statistics import score_frame

__all__ = ["report", "score_frame"]
