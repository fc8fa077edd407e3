"""Exact global top-k over every tensor of a model, in bounded memory.

Entries are ordered by one 63-bit key, smallest first: 31 bits of the score's rank (the bits of a
non-negative fp32 number are monotone in its value; the rank counts down from the largest), then a
32-bit hash of (tensor name, flat index). The k-th key is found digit by digit, 16 bits a pass over
the stream, and a last pass emits what lies below it: a radix selection that never holds more than
one piece of one tensor, a histogram and at most `IN_MEMORY` candidates beside its result.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allo.errors import UserError

# Entries looked at together: small enough for the processor's cache, large enough to hide Python.
PIECE = 1 << 20
# Ties that a last in-memory sort settles; with more of them another pass narrows them down first.
IN_MEMORY = 1 << 20

_LARGEST_BITS = 0x7FFFFFFF
_DIGIT = 16
_BINS = 1 << _DIGIT

# Name, flat indices (int32), scores (fp32), both [num_entries].
Entries = Iterable[tuple[str, Tensor, Tensor]]


def num_to_select(density: float, num_weights: int) -> int:
    """k = round(density * N) (method 1.1). UserError unless 0 < density <= 1 and k >= 1."""
    if not 0 < density <= 1:
        raise UserError(
            f"density is {density}: it must be above 0 and at most 1 (0.05 selects 5% of all weights)"
        )
    k = round(density * num_weights)
    if k == 0:
        raise UserError(f"density {density} selects none of the model's {num_weights} weights: raise it")
    return k


def select(tensors: Callable[[], Iterable[tuple[str, Tensor]]], *, k: int) -> dict[str, Tensor]:
    """The k largest scores of all tensors together, whatever their order.

    `tensors` starts a new pass over (name, non-negative fp32 scores of any shape) each time it is
    called and gives the same values each time. A large tensor may come in several consecutive
    pieces of its flattened entries under one name; then memory does not grow with the tensor.

    Exactly k entries are selected (0 <= k <= number of entries). Of equal scores those with the
    smallest `stable_hash` win; of equal hashes, too, the first in order of (name, flat index).

    Returns name -> sorted flat indices (int32, CPU); tensors with none selected are absent.
    Raises UserError for scores that are NaN or negative. Infinity ranks above every number.
    """
    return select_among(lambda: _with_indices(tensors()), k=k)


def select_among(entries: Callable[[], Entries], *, k: int) -> dict[str, Tensor]:
    """As `select`, over a sparse stream of (name, flat indices int32 ascending, scores fp32)."""
    cut = _narrow(entries, _Cut(prefix=0, shift=64, quota=k, num_tied=0))
    if k == 0:
        return {}
    while cut.shift > 0 and cut.quota < cut.num_tied and cut.num_tied > IN_MEMORY:
        cut = _narrow(entries, cut)
    return _emit(entries, cut, k=k)


def stable_hash(name: str, indices: Tensor, *, seed: int = 0) -> Tensor:
    """A 32-bit hash of (seed, tensor name, flat index), the same on every machine and release.

    `indices` is an integer tensor of any shape; returns int64 of that shape, 0 <= hash < 2^32.
    The name seeds one splitmix64 stream a tensor; int64 products wrap as uint64 ones do.
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    x = (indices.long() + 1) * _signed(0x9E3779B97F4A7C15) + int.from_bytes(digest, "little", signed=True)
    # torch shifts int64 arithmetically: the masks make the shifts logical.
    x = (x ^ ((x >> 30) & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return (x ^ ((x >> 31) & (1 << 33) - 1)) >> 32 & 0xFFFFFFFF


@dataclass(frozen=True)
class _Cut:
    """Keys with key >> shift below `prefix` are selected, and `quota` of the `num_tied` equal to it."""

    prefix: int
    shift: int
    quota: int
    num_tied: int

    def above(self, ranks: Tensor) -> Tensor:
        """Which entries are selected by their score alone, bool [num_entries]."""
        return (ranks >> max(self.shift - 32, 0)) < self.prefix >> max(32 - self.shift, 0)

    def at_the_edge(self, name: str, indices: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and keys of the entries that the score alone does not decide."""
        edge = (ranks >> max(self.shift - 32, 0)) == self.prefix >> max(32 - self.shift, 0)
        positions = edge.nonzero().squeeze(1)
        return positions, ranks[positions].long() << 32 | stable_hash(name, indices[positions])


def _narrow(entries: Callable[[], Entries], cut: _Cut) -> _Cut:
    """One pass: a histogram of the 16 key bits after the cut's prefix moves the cut into one bin."""
    shift = cut.shift - _DIGIT
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for name, indices, ranks in _ranked(entries):
        if cut.shift == 64:
            digits = ranks >> _DIGIT
        else:
            _, keys = cut.at_the_edge(name, indices, ranks)
            digits = keys[keys >> cut.shift == cut.prefix] >> shift & (_BINS - 1)
        counts += torch.bincount(digits, minlength=_BINS).cpu()
    up_to = counts.cumsum(0)
    assert 0 <= cut.quota <= int(up_to[-1]), f"{cut.quota} entries asked of {int(up_to[-1])}"
    digit = int(torch.searchsorted(up_to, cut.quota))
    num_tied = int(counts[digit])
    quota = cut.quota - int(up_to[digit]) + num_tied
    return _Cut(prefix=cut.prefix << _DIGIT | digit, shift=shift, quota=quota, num_tied=num_tied)


def _emit(entries: Callable[[], Entries], cut: _Cut, *, k: int) -> dict[str, Tensor]:
    """One pass: what the cut selects, with its quota of the ties.

    Results go into arrays allocated beforehand: small tensors kept from every piece would pin the
    heap between the large freed ones, and resident memory would grow with the model after all.
    """
    ties_left = 0 if cut.num_tied == cut.quota else cut.quota
    sure = np.empty(k - ties_left, dtype=np.int32)
    tied = np.empty(cut.num_tied if ties_left else 0, dtype=np.int32)
    tied_keys = np.empty(len(tied), dtype=np.int64)
    ends: dict[str, tuple[int, int]] = {}
    num_sure = num_tied = 0
    for name, indices, ranks in _ranked(entries):
        selected = cut.above(ranks)
        positions, keys = cut.at_the_edge(name, indices, ranks)
        leading = keys >> cut.shift
        selected[positions[leading < cut.prefix]] = True
        equal = leading == cut.prefix
        if ties_left:
            here = slice(num_tied, num_tied := num_tied + int(equal.sum()))
            tied[here], tied_keys[here] = indices[positions[equal]].cpu(), keys[equal].cpu()
        else:
            selected[positions[equal]] = True
        here = slice(num_sure, num_sure := num_sure + int(selected.sum()))
        sure[here] = indices[selected].cpu()
        ends[name] = (num_sure, num_tied)
    assert num_sure == len(sure) and num_tied == len(tied), "the stream changed between two passes"

    late = _smallest(tied, tied_keys, {name: end for name, (_, end) in ends.items()}, quota=ties_left)
    result, start = {}, 0
    for name, (end, _) in ends.items():
        merged = np.insert(sure[start:end], np.searchsorted(sure[start:end], late[name]), late[name])
        start = end
        if len(merged):
            result[name] = torch.from_numpy(merged)
    return result


def _smallest(
    indices: np.ndarray, keys: np.ndarray, ends: dict[str, int], *, quota: int
) -> dict[str, np.ndarray]:
    """The `quota` smallest by (key, name, flat index), back under their names; `ends` splits by name."""
    bounds = [0, *ends.values()]
    place = {name: number for number, name in enumerate(sorted(ends))}
    places = np.repeat([place[name] for name in ends], np.diff(bounds)) if ends else indices
    won = np.sort(np.lexsort((indices, places, keys))[:quota])
    first_of = np.searchsorted(won, bounds)
    return {name: indices[won[first_of[i] : first_of[i + 1]]] for i, name in enumerate(ends)}


def _ranked(entries: Callable[[], Entries]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, indices, ranks int32 >= 0, small for large scores), piece by piece."""
    for name, indices, scores in entries():
        assert scores.dtype == torch.float32 and indices.dtype == torch.int32
        if not bool((scores >= 0).all()):
            bad = int(indices[~(scores >= 0)][0])
            raise UserError(
                f"tensor {name}, flat index {bad}: the importance score is NaN or negative, so weights cannot"
                " be ranked; look for NaN or infinite values in the model's weights or gradients"
            )
        # abs: the bits of -0.0 are not those of 0.0.
        yield name, indices, _LARGEST_BITS - scores.abs().view(torch.int32)


def _with_indices(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Flat indices beside each entry, cut into pieces; one name again at once goes on where it was."""
    seen: set[str] = set()
    current, start = "", 0
    for name, scores in tensors:
        if name != current:
            assert name not in seen, f"tensor {name} comes twice"
            seen.add(name)
            current, start = name, 0
        for piece in scores.detach().reshape(-1).split(PIECE):
            end = start + len(piece)
            if end > _LARGEST_BITS:
                raise UserError(
                    f"tensor {name} has over {_LARGEST_BITS} entries: too many for 32-bit indices"
                )
            yield name, torch.arange(start, end, dtype=torch.int32, device=piece.device), piece
            start = end


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
