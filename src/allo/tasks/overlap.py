"""Problems that occur in what a model was trained on, as they are or nearly so."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SPAN = 8
SHARE = 0.7
"""Of a problem's spans of 8 words, the share that training has seen from which on it counts as seen (PaLM,
arXiv 2204.02311, section 8). A single shared span of 13 words, as GPT-3's filter has it (arXiv 2005.14165,
appendix C), marks problems that share nothing but the wording of their set."""

Words = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Of `num` problems, how many are training problems word for word (`exact`), and how many nearly (`near`).

    `near` counts the exact ones too.
    """

    num: int
    exact: int
    near: int


def overlap(problems: Sequence[str], training: Iterable[str]) -> Overlap:
    """Counts the problems that training has seen; capitals, punctuation and spaces make no difference.

    A problem of fewer than `SPAN` words is seen where it is the same. Memory is that of the problems, not of the
    training texts.
    """
    texts = [words(problem) for problem in problems]
    spans = [_spans(text) for text in texts]
    whole, parts = set(texts), set().union(*spans)
    known_texts: set[Words] = set()
    known_spans: set[Words] = set()
    for text in training:
        told = words(text)
        known_texts |= {told} & whole
        known_spans |= _spans(told) & parts
    exact = [text in known_texts for text in texts]
    near = [
        same or (bool(own) and len(own & known_spans) >= SHARE * len(own))
        for same, own in zip(exact, spans, strict=True)
    ]
    return Overlap(len(texts), sum(exact), sum(near))


def words(text: str) -> Words:
    """The words and numbers of a text, without capitals, punctuation and spaces."""
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def _spans(text: Words) -> set[Words]:
    return {text[start : start + SPAN] for start in range(len(text) - SPAN + 1)}
