"""Importance scores, exact selection, masks, the selected weights in training, and weights on disk.

The names here are those that an own criterion is written with.
"""

from typing import TYPE_CHECKING

from allo.lazy import names_of

if TYPE_CHECKING:
    from allo.weights.importance import Scoring, criterion

__all__ = ["Scoring", "criterion"]

__getattr__, __dir__ = names_of(
    __name__,
    {"Scoring": "allo.weights.importance:Scoring", "criterion": "allo.weights.importance:criterion"},
)
