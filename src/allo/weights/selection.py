"""Exact global top-k over every tensor of a model, in bounded memory.

Entries are sorted by a 63-bit key, smallest first. Its upper 31 bits are the score's rank: the bits of a non-negative
fp32 number, which grow with its value, subtracted from their maximum. Its lower 32 bits are a hash of (tensor name,
flat index).

A sample gives two keys between which the k-th nearly always lies. One pass over the stream keeps entries below both,
sets aside those in between, and counts, which detects a wrong guess. After a wrong guess, a radix selection finds the
k-th key, 16 bits per pass. Apart from the result, memory holds at most the sample, `IN_MEMORY` entries set aside and a
few pieces of a tensor.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allo.errors import UserError
from allo.weights.key_sample import LARGEST_BITS, guess, ranks_of
from allo.weights.shards import ONE, Ranks

# Entries processed together: few enough for the processor's cache, enough to hide Python's overhead.
PIECE = 1 << 19
# Entries that may be set aside for a last selection in memory, 8 bytes each.
IN_MEMORY = 10 << 20

_DIGIT = 16
_BINS = 1 << _DIGIT
_AHEAD = 2  # pieces that wait for the second thread

# Name, flat indices (int32), scores (fp32), both [num_entries].
Entries = Iterable[tuple[str, Tensor, Tensor]]
# The same; consecutive entries may give the first index instead of all.
Piece = tuple[str, Tensor | int, Tensor]
Pieces = Iterable[Piece]
Scores = Callable[[], Iterable[tuple[str, Tensor] | Piece]]

# For one piece: name, indices of the keys below both bounds, indices and ranks of those in between.
_Divided = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def num_to_select(density: float, num_weights: int) -> int:
    """Return k = round(density * N) (method 1.1). Raises UserError unless 0 < density <= 1 and k >= 1."""
    if not 0 < density <= 1:
        raise UserError(
            f"density is {density}: it must be above 0 and at most 1 (0.05 selects 5% of all weights)"
        )
    k = round(density * num_weights)
    if k == 0:
        raise UserError(f"density {density} selects none of the model's {num_weights} weights: raise it")
    return k


def select(tensors: Scores, *, k: int) -> dict[str, Tensor]:
    """Select the k largest scores over all tensors, whose order does not matter.

    Each call of `tensors` starts a new pass over (name, non-negative fp32 scores of any shape) with the same values.
    A large tensor may come in several consecutive flat pieces under one name; memory then does not grow with the
    tensor. A part of a tensor has its flat indices, or the first of them, before the scores.

    Exactly k entries are selected (0 <= k <= number of entries). Ties go to the smallest `stable_hash`, then to the
    first (name, flat index).

    Returns name -> sorted flat indices (int32, CPU); tensors with none selected are absent. Raises UserError for
    scores that are NaN or negative. Infinity ranks above every number.
    """
    return _select(lambda: with_starts(tensors()), guess((scores for *_, scores in tensors()), k=k), k=k)


def select_sampled(
    tensors: Scores, *, sample: Iterable[Tensor], num_entries: int, k: int
) -> dict[str, Tensor]:
    """Select like `select`, with a `sample` provided by the caller, in one pass over `tensors`.

    `sample` is a fair share of all `num_entries` scores, in any shapes, in order. A bad sample costs time but leaves
    the result exact.
    """
    return _select(lambda: with_starts(tensors()), guess(sample, k=k, num_entries=num_entries), k=k)


def select_among(entries: Callable[[], Entries], *, k: int) -> dict[str, Tensor]:
    """Select like `select` from a sparse stream of (name, flat indices int32 ascending, scores fp32)."""
    return _select(entries, guess((scores for _, _, scores in entries()), k=k), k=k)


def stable_hash(name: str, indices: Tensor, *, seed: int = 0) -> Tensor:
    """Return a 32-bit hash of (seed, tensor name, flat index), the same on every machine and release.

    `indices` is an integer tensor of any shape; returns int64 of that shape, 0 <= hash < 2^32.
    """
    hashes = _hashes(name, indices.cpu().numpy(), seed=seed).astype(np.int64)
    return torch.from_numpy(hashes).to(indices.device)


def _hashes(name: str, indices: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Compute `stable_hash` as uint64: the upper halves of a splitmix64 stream seeded with the name."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    x = indices.astype(np.uint64)
    x += np.uint64(1)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(int.from_bytes(digest, "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    x >>= np.uint64(32)
    return x


def _select(entries: Callable[[], Pieces], guessed: tuple[int, int], *, k: int) -> dict[str, Tensor]:
    if k == 0:
        return {}
    result = _emit(entries, guessed, k=k, room=IN_MEMORY)
    if result is None:
        cut = narrow(entries, Cut(prefix=0, shift=64, quota=k, num_tied=0))
        while cut.shift > 0 and cut.quota < cut.num_tied and cut.num_tied > IN_MEMORY:
            cut = narrow(entries, cut)
        result = _emit(entries, cut.bounds, k=k, room=cut.num_tied)
        assert result is not None, "the stream changed between two passes"
    return result


def _emit(
    entries: Callable[[], Pieces], bounds: tuple[int, int], *, k: int, room: int
) -> dict[str, Tensor] | None:
    """Return the k smallest keys in one pass, or None if the bounds do not enclose the k-th or `room` is too small.

    Indices go into arrays allocated beforehand. Small tensors kept from every piece would pin the heap between large
    freed ones, and resident memory would grow with the model. Entries chosen among those set aside are merged in
    place into the array of certain ones.
    """
    kept = np.empty(k, dtype=np.int32)
    aside, ranks = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    ends: dict[str, tuple[int, int]] = {}
    num_kept = num_aside = 0
    with closing(_divided(entries(), bounds)) as divided:
        for name, below, between, between_ranks in divided:
            if num_kept + len(below) > k or num_aside + len(between) > room:
                return None
            kept[num_kept : num_kept + len(below)] = below
            aside[num_aside : num_aside + len(between)] = between
            ranks[num_aside : num_aside + len(between)] = between_ranks
            num_kept, num_aside = num_kept + len(below), num_aside + len(between)
            ends[name] = (num_kept, num_aside)
    if num_kept + num_aside < k:
        return None
    aside, ranks = aside[:num_aside], ranks[:num_aside]
    won = _smallest(aside, ranks, {name: end for name, (_, end) in ends.items()}, quota=k - num_kept)
    return _merged(kept, aside, won, ends)


def divide(name: str, where: Tensor | int, values: Tensor, bounds: tuple[int, int]) -> _Divided:
    scores = values.detach().cpu().numpy()
    _check(name, where, scores)
    low, high = bounds
    lowest = np.int32(max(LARGEST_BITS - (high >> 32), 0)).view(np.float32)
    positions = np.flatnonzero(scores >= lowest)
    ranks = ranks_of(scores.take(positions))
    indices = _indices_at(where, positions)
    below, between = ranks < low >> 32, (ranks > low >> 32) & (ranks < high >> 32)
    edge = np.flatnonzero((ranks == low >> 32) | (ranks == high >> 32))
    keys = ranks.take(edge).astype(np.uint64) << np.uint64(32) | _hashes(name, indices.take(edge))
    below[edge] = keys < low
    between[edge] = (keys >= low) & (keys < high)
    later = np.flatnonzero(between)
    return name, indices.take(np.flatnonzero(below)), indices.take(later), ranks.take(later)


def _indices_at(where: Tensor | int, positions: np.ndarray) -> np.ndarray:
    """Return the flat indices (int32) of a piece's entries."""
    if isinstance(where, int):
        return (positions + where).astype(np.int32)
    return where.cpu().numpy().take(positions)


def _divided(entries: Pieces, bounds: tuple[int, int]) -> Generator[_Divided, None, None]:
    """Yield `divide` of each piece, in order, from a second thread while this one produces further pieces."""
    waiting: deque[Future[_Divided]] = deque()
    with ThreadPoolExecutor(1) as second:
        for name, where, scores in entries:
            waiting.append(second.submit(divide, name, where, scores, bounds))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _merged(
    kept: np.ndarray, aside: np.ndarray, won: np.ndarray, ends: dict[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """Insert the winners among `aside` into `kept`; return each tensor's sorted indices as views of it."""
    bounds = [(0, 0), *ends.values()]
    result = {}
    stop = len(kept)
    # Starting with the last tensor, because each one only moves towards the end.
    for number, name in reversed(list(enumerate(ends))):
        (first, first_aside), (last, last_aside) = bounds[number : number + 2]
        late = aside[first_aside:last_aside][won[first_aside:last_aside]]
        start = stop - (last - first) - len(late)
        sure = kept[first:last]
        kept[start:stop] = np.insert(sure, np.searchsorted(sure, late), late)
        if start < stop:
            result[name] = torch.from_numpy(kept[start:stop])
        stop = start
    return dict(reversed(result.items()))


def _smallest(indices: np.ndarray, ranks: np.ndarray, ends: dict[str, int], *, quota: int) -> np.ndarray:
    """Mark the `quota` smallest by (rank, hash, name, flat index), bool; `ends` splits by name."""
    won = np.zeros(len(ranks), dtype=bool)
    if quota == 0:
        return won
    threshold = np.partition(ranks, quota - 1)[quota - 1]
    won[ranks < threshold] = True
    tied = np.flatnonzero(ranks == threshold)
    quota -= int(np.count_nonzero(won))
    hashes = np.empty(len(tied), dtype=np.uint32)
    bounds = np.searchsorted(tied, [0, *ends.values()])
    for number, name in enumerate(ends):
        for start in range(bounds[number], bounds[number + 1], PIECE):
            here = slice(start, min(start + PIECE, bounds[number + 1]))
            hashes[here] = _hashes(name, indices[tied[here]])
    limit = np.partition(hashes, quota - 1)[quota - 1]
    won[tied[hashes < limit]] = True
    equal = np.flatnonzero(hashes == limit)
    place = {name: number for number, name in enumerate(sorted(ends))}
    places = np.array([place[name] for name in ends])[np.searchsorted(bounds[1:], equal, "right")]
    order = np.lexsort((indices[tied[equal]], places))
    won[tied[equal[order[: quota - int(np.count_nonzero(hashes < limit))]]]] = True
    return won


@dataclass(frozen=True)
class Cut:
    """A cut through the keys: key >> shift below `prefix` is selected, and `quota` of the `num_tied` equal to it."""

    prefix: int
    shift: int
    quota: int
    num_tied: int

    @property
    def bounds(self) -> tuple[int, int]:
        """Return two bounds: keys below both are selected, keys from the second on are not."""
        low, high = self.prefix << self.shift, self.prefix + 1 << self.shift
        return (high, high) if self.quota == self.num_tied else (low, high)

    def at_the_edge(self, name: str, indices: Tensor, ranks: Tensor) -> Tensor:
        """Return the keys of the entries that the score alone does not decide."""
        edge = (ranks >> max(self.shift - 32, 0)) == self.prefix >> max(32 - self.shift, 0)
        positions = edge.nonzero().squeeze(1)
        return ranks[positions].long() << 32 | stable_hash(name, indices[positions])


def narrow(entries: Callable[[], Pieces], cut: Cut, holders: Ranks = ONE) -> Cut:
    """Narrow the cut to one bin, in one pass: a histogram of the 16 key bits after its prefix, over all ranks' entries."""
    shift = cut.shift - _DIGIT
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for name, indices, ranks in _ranked(entries):
        if cut.shift == 64:
            digits = ranks >> _DIGIT
        else:
            keys = cut.at_the_edge(name, indices, ranks)
            digits = keys[keys >> cut.shift == cut.prefix] >> shift & (_BINS - 1)
        counts += torch.bincount(digits, minlength=_BINS).cpu()
    counts = holders.sum(counts.to(holders.device)).cpu()
    up_to = counts.cumsum(0)
    assert 0 <= cut.quota <= int(up_to[-1]), f"{cut.quota} entries asked of {int(up_to[-1])}"
    digit = int(torch.searchsorted(up_to, cut.quota))
    num_tied = int(counts[digit])
    quota = cut.quota - int(up_to[digit]) + num_tied
    return Cut(prefix=cut.prefix << _DIGIT | digit, shift=shift, quota=quota, num_tied=num_tied)


def _ranked(entries: Callable[[], Pieces]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, indices, ranks int32 >= 0, small for large scores), piece by piece."""
    for name, where, values in entries():
        scores = values.detach().cpu().numpy()
        _check(name, where, scores)
        indices = _indices_at(where, np.arange(len(scores)))
        yield name, torch.from_numpy(indices), torch.from_numpy(ranks_of(scores))


def _check(name: str, where: Tensor | int, scores: np.ndarray) -> None:
    assert scores.dtype == np.float32 and (isinstance(where, int) or where.dtype == torch.int32)
    # The minimum is NaN if any score is.
    if len(scores) and not scores.min() >= 0:
        bad = int(_indices_at(where, np.flatnonzero(~(scores >= 0)))[0])
        raise UserError(
            f"tensor {name}, flat index {bad}: the importance score is NaN or negative, so weights cannot"
            " be ranked; look for NaN or infinite values in the model's weights or gradients"
        )


def with_starts(
    tensors: Iterable[tuple[str, Tensor] | Piece],
) -> Iterator[Piece]:
    """Yield pieces with their flat indices or the first of them; consecutive tensors of one name are pieces of one tensor."""
    seen: set[str] = set()
    current, start = "", 0
    for name, *where, scores in tensors:
        match where:
            case [Tensor() as indices]:
                parts = zip(indices.split(PIECE), scores.split(PIECE), strict=True)
                yield from ((name, part, piece) for part, piece in parts)
                continue
            case [int(first)]:
                start = first
            case _ if name != current:
                assert name not in seen, f"tensor {name} comes twice"
                seen.add(name)
                current, start = name, 0
        for piece in scores.detach().reshape(-1).split(PIECE):
            end = start + len(piece)
            if end > LARGEST_BITS:
                raise UserError(f"tensor {name} has over {LARGEST_BITS} entries: too many for 32-bit indices")
            yield name, start, piece
            start = end
