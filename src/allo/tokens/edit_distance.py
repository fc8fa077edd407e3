"""The number of single-token edits between two texts."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from allo.models.load import Tokenizer
from allo.models.tokenization import bare_ids


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
    return Levenshtein.distance(one, other)


def edit_share(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the edit distance over the longer one's length: 0 for equal ids, 1 if none is kept."""
    return edit_distance(one, other) / max(len(one), len(other), 1)


def text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return a completion's token ids."""
    return bare_ids(tokenizer, text)


def nearest(text: str, others: Sequence[str], tokenizer: Tokenizer) -> str:
    """Return the one of `others`, at least one, of the fewest token edits away; of equally near ones the first."""
    ids = text_ids(text, tokenizer)
    return min(others, key=lambda other: edit_distance(ids, text_ids(other, tokenizer)))
