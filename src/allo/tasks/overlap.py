"""Problems that occur in a model's training texts, exactly or nearly."""

import re
from collections.abc import Iterable, Sequence

from allo.files.evaluation import Overlap

SPAN = 8
SHARE = 0.7
"""A problem counts as seen if training holds at least this share of its 8-word spans (PaLM, arXiv 2204.02311, section
8). GPT-3's filter, one shared span of 13 words (arXiv 2005.14165, appendix C), also marks problems that share only
their set's wording."""

Words = tuple[str, ...]


def overlap(problems: Sequence[str], training: Iterable[str]) -> Overlap:
    """Count the problems that training has seen, ignoring capitals, punctuation and spaces.

    A problem of fewer than `SPAN` words is seen only if it is equal. Memory grows with the problems, not with the
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
    """Return the words and numbers of a text, without capitals, punctuation and spaces."""
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def _spans(text: Words) -> set[Words]:
    return {text[start : start + SPAN] for start in range(len(text) - SPAN + 1)}
