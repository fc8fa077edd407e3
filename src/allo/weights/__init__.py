"""Which weights matter, and training them alone. The names here are those that an own criterion is written with."""

from typing import TYPE_CHECKING

from allo.lazy import names_of

if TYPE_CHECKING:
    from allo.weights.importance import Criterion

__all__ = ["Criterion"]

__getattr__, __dir__ = names_of(__name__, {"Criterion": "allo.weights.importance:Criterion"})
