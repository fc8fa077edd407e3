"""Scorers of the tokens of wrong completions. The names here are those that an own scorer is written with."""

from typing import TYPE_CHECKING

from allo.lazy import names_of

if TYPE_CHECKING:
    from allo.tokens.scorers import Context, Scored, ScoringFunction, confidence, edit

__all__ = ["Context", "Scored", "ScoringFunction", "confidence", "edit"]

__getattr__, __dir__ = names_of(
    __name__,
    {
        "Context": "allo.tokens.scorers:Context",
        "Scored": "allo.tokens.scorers:Scored",
        "ScoringFunction": "allo.tokens.scorers:ScoringFunction",
        "confidence": "allo.tokens.scorers:confidence",
        "edit": "allo.tokens.scorers:edit",
    },
)
