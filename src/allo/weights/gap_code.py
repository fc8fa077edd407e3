"""Sorted indices in few bits: Golomb-Rice codes of the gaps between them, packed with numpy alone.

At density p the gaps are geometric with an entropy of H(p) / p bits an entry (5.73 at 5%, 4.69 at
10%). A Rice code of parameter b writes a gap g as g >> b in unary and the low b bits as they are:
5.79 and 4.76 bits. Each block of `BLOCK` gaps has the parameter that makes it shortest, its low
bits as b planes and its unary bits as one string, so that every step is one numpy call a block.
Where entries stand in runs, as in a mask of whole rows, the runs are coded in place of the entries.

A stream is bytes: crc32 of the rest (uint32), number of entries (uint32), form (uint8), then the
code: of the gaps; or the number of runs (uint32), the code of the gaps between them and that of
their lengths less one. A code's block is b (uint8), bytes of unary (uint32), planes, unary.
Numbers are little-endian. Source of the code: Rice and Plaunt, 1971; Golomb, 1966.
"""

import struct
import zlib

import numpy as np

from allo.errors import UserError

BLOCK = 1 << 15

_ENTRIES, _RUNS = 0, 1
_HEAD = struct.Struct("<IIB")
_COUNT = struct.Struct("<I")
_BLOCK_HEAD = struct.Struct("<BI")
_WORD = 31  # bits of a non-negative int32


def encode(indices: np.ndarray) -> np.ndarray:
    """Sorted unique non-negative int32 [num_entries] as a stream, uint8 [num_bytes]."""
    assert indices.dtype == np.int32 and indices.ndim == 1
    gaps = np.diff(indices, prepend=np.int32(-1)) - 1
    num_runs = int(np.count_nonzero(gaps)) + (len(gaps) > 0 and gaps[0] == 0)
    form, parts = _ENTRIES, []
    # A run costs two codes where each of its entries would cost one.
    if 2 * num_runs < len(indices):
        form = _RUNS
        starts = np.flatnonzero(gaps) if gaps[0] else np.concatenate([[0], np.flatnonzero(gaps)])
        lengths = np.diff(starts, append=len(gaps)).astype(np.int32)
        parts = [_COUNT.pack(num_runs), *_code(gaps[starts]), *_code(lengths - 1)]
    else:
        parts = _code(gaps)
    body = b"".join([_HEAD.pack(0, len(indices), form)[4:], *parts])
    return np.frombuffer(_COUNT.pack(zlib.crc32(body)) + body, dtype=np.uint8)


def decode(stream: np.ndarray, *, size: int, where: str) -> np.ndarray:
    """The indices, int32 [num_entries], of a tensor of `size` entries.

    Raises UserError, beginning with `where`, for a stream that is truncated, damaged or leads out
    of the tensor. What is allocated is bounded by `size` and by the length of the stream.
    """
    data = np.ascontiguousarray(stream).data
    if len(data) < _HEAD.size or _COUNT.unpack_from(data)[0] != zlib.crc32(data[4:]):
        raise UserError(f"{where}: the gap code is truncated or damaged: the file must be written again")
    _, num_entries, form = _HEAD.unpack_from(data)
    reader = _Reader(data, _HEAD.size, size=size, where=where)
    if num_entries > size or form not in (_ENTRIES, _RUNS):
        raise reader.impossible(f"{num_entries} entries of form {form}")
    if form == _ENTRIES:
        indices = reader.positions(num_entries)
    else:
        num_runs = reader.count()
        if num_runs > num_entries:
            raise reader.impossible(f"{num_runs} runs of {num_entries} entries")
        indices = _expand(reader, num_runs=num_runs, num_entries=num_entries)
    reader.expect_end()
    return indices


def _code(values: np.ndarray) -> list[bytes]:
    """Non-negative int32 [num] as blocks of one Rice code each."""
    parts = []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        b = _parameter(block)
        # Cast first: numpy sums with a cast in between ten times as slowly.
        steps = (block >> b).astype(np.int64)
        steps += 1
        ends = np.cumsum(steps, out=steps)
        unary = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
        unary[ends] = 1
        packed = np.packbits(unary[1:])
        parts.append(_BLOCK_HEAD.pack(b, len(packed)))
        for first in range(0, b, 8):
            byte = (block >> first).astype(np.uint8)
            parts += [np.packbits(byte & (1 << plane)).tobytes() for plane in range(min(8, b - first))]
        parts.append(packed.tobytes())
    return parts


def _parameter(block: np.ndarray) -> int:
    """The b with the shortest code, searched from the one that suits a geometric law of this mean."""

    def num_bits(b: int) -> int:
        return len(block) * (b + 1) + int((block >> b).sum())

    b = int(0.69 * float(block.mean())).bit_length()
    least = num_bits(b)
    for step in (-1, 1):
        while 0 <= b + step <= _WORD and (found := num_bits(b + step)) < least:
            b, least = b + step, found
    return b


def _expand(reader: "_Reader", *, num_runs: int, num_entries: int) -> np.ndarray:
    """Runs as the entries they stand for; gaps are counted from the end of the run before."""
    ends_without = reader.positions(num_runs)  # each run counted as one entry
    longer = reader.positions(num_runs)  # cumulated lengths, less one
    if num_runs and int(longer[-1]) + 1 != num_entries:
        raise reader.impossible(f"runs of {int(longer[-1]) + 1} entries in place of {num_entries}")
    lengths = np.diff(longer, prepend=np.int32(-1))
    # Each entry is its own number plus all that was skipped before its run.
    skipped = ends_without - np.arange(num_runs, dtype=np.int32)
    if num_runs and int(skipped[-1]) + num_entries > reader.size:
        raise reader.impossible(f"an index of {int(skipped[-1]) + num_entries - 1}")
    return np.repeat(skipped, lengths) + np.arange(num_entries, dtype=np.int32)


class _Reader:
    """Goes through a stream once; every length that it reads is checked before it is believed."""

    def __init__(self, data: memoryview, offset: int, *, size: int, where: str) -> None:
        self._data = data
        self._offset = offset
        self.size = size
        self._where = where

    def impossible(self, found: str) -> UserError:
        return UserError(
            f"{self._where}: the gap code gives {found}, which a tensor of {self.size} cannot have"
        )

    def count(self) -> int:
        return int(_COUNT.unpack(self._take(_COUNT.size))[0])

    def positions(self, num: int) -> np.ndarray:
        """`num` coded gaps as the sorted positions that they lie between, int32 [num]."""
        if num > 8 * (len(self._data) - self._offset):
            raise self.impossible(f"{num} entries in {len(self._data) - self._offset} bytes")
        positions = np.empty(num, dtype=np.int32)
        last = -1
        for start in range(0, num, BLOCK):
            block = positions[start : start + BLOCK]
            self._block(block, last)
            last = int(block[-1])
        return positions

    def expect_end(self) -> None:
        if self._offset != len(self._data):
            raise self.impossible(f"{len(self._data) - self._offset} bytes too many")

    def _block(self, out: np.ndarray, last: int) -> None:
        """The positions of one block into `out`, after the position `last`.

        With t the unary string's ones, entry i is ((t_i - i) << b) + sum of low bits + i + 1 past `last`.
        """
        num = len(out)
        b, num_bytes = _BLOCK_HEAD.unpack(self._take(_BLOCK_HEAD.size))
        if b > _WORD:
            raise self.impossible(f"a Rice parameter of {b}")
        planes = [self._bits(-(-num // 8))[:num] for _ in range(b)]
        ones = np.flatnonzero(self._bits(num_bytes).view(bool))
        if len(ones) != num or num_bytes != ones[-1] // 8 + 1:
            raise self.impossible(f"{len(ones)} ends of {num} codes")
        order = np.arange(num)
        ones -= order
        low_sum = _low_sum(planes, num)
        if last + 1 + (int(ones[-1]) << b) + int(low_sum[-1]) + num > self.size:
            raise self.impossible(f"an index past {last}")
        ones <<= b
        ones += low_sum
        ones += order
        np.add(ones, last + 1, out=out, casting="unsafe")

    def _bits(self, num_bytes: int) -> np.ndarray:
        return np.unpackbits(np.frombuffer(self._take(num_bytes), dtype=np.uint8))

    def _take(self, num_bytes: int) -> memoryview:
        end = self._offset + num_bytes
        if end > len(self._data):
            raise self.impossible("a length past its end")
        part = self._data[self._offset : end]
        self._offset = end
        return part


def _low_sum(planes: list[np.ndarray], num: int) -> np.ndarray:
    """Running sums of the low bits that `planes` hold, least significant first, int64 [num]."""
    low = np.zeros(num, dtype=np.int64)
    for first in range(0, len(planes), 8):
        byte = np.zeros(num, dtype=np.uint8)
        for place, plane in enumerate(planes[first : first + 8]):
            byte |= plane << place
        low += byte if first == 0 else byte.astype(np.int64) << first
    return np.cumsum(low, out=low)
