"""How many single-token edits two texts are apart."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """The fewest insertions, deletions and substitutions of ids that turn one into the other (Levenshtein 1966)."""
    return Levenshtein.distance(one, other)


def edit_share(one: Sequence[int], other: Sequence[int]) -> float:
    """The edit distance as a share of the longer one's length: 0 for equal ids, 1 where none is kept."""
    return edit_distance(one, other) / max(len(one), len(other), 1)


def nearest(ids: Sequence[int], others: Sequence[Sequence[int]]) -> int:
    """The place in `others`, at least one, of the fewest edits away from `ids`; of equally near ones the first."""
    return min(range(len(others)), key=lambda place: edit_distance(ids, others[place]))
