"""The number of single-token edits between two texts."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
    return Levenshtein.distance(one, other)


def edit_share(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the edit distance over the longer one's length: 0 for equal ids, 1 if none is kept."""
    return edit_distance(one, other) / max(len(one), len(other), 1)


def nearest(ids: Sequence[int], others: Sequence[Sequence[int]]) -> int:
    """Return the index in `others` of the one with the fewest edits to `ids`; of equally near ones the first."""
    return min(range(len(others)), key=lambda place: edit_distance(ids, others[place]))
