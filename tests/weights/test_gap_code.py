"""The gap code gives back what it was given, near the entropy, and refuses what it did not write."""

import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allo.errors import UserError
from allo.weights import gap_code

LARGEST = 2**31 - 1
# Over the entropy: a Rice code's loss on geometric gaps, block heads and sampling noise included.
OVERHEAD = 1.03
# Each run or entry costs at most this much even at the worst parameter: unary and low bits of a gap.
BYTES_OF_ANY_GAP = 5


def drawn(density: float, size: int, *, seed: int = 0) -> np.ndarray:
    """Each of `size` entries with probability `density`."""
    kept = np.random.default_rng(seed).random(size, dtype=np.float32) < density
    return np.flatnonzero(kept).astype(np.int32)


def back(indices: np.ndarray, size: int) -> np.ndarray:
    return gap_code.decode(gap_code.encode(indices), size=size, where="here")


def rows(num: int, width: int, every: int) -> np.ndarray:
    """All of each row whose number is a multiple of `every`."""
    return np.add.outer(np.arange(0, num, every) * width, np.arange(width)).ravel().astype(np.int32)


@pytest.mark.invariant("Gap-coded indices come back, and damage is found.")
@given(
    indices=st.sets(st.integers(0, LARGEST - 1) | st.integers(0, 200), max_size=300),
    block=st.sampled_from([1, 3, 64, 1 << 15]),
)
@settings(max_examples=300, deadline=None)
def test_any_set_of_indices_comes_back(indices: set[int], block: int) -> None:
    given_ones = np.array(sorted(indices), dtype=np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap_code, "BLOCK", block)
        decoded = back(given_ones, LARGEST)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, given_ones)


@given(
    runs=st.lists(st.tuples(st.integers(1, 40_000), st.integers(1, 40_000)), min_size=1, max_size=6),
    block=st.sampled_from([1, 2, 1 << 15]),
)
@settings(max_examples=100, deadline=None)
def test_runs_come_back(runs: list[tuple[int, int]], block: int) -> None:
    """Runs of the second number of entries, each behind a gap of the first number less one."""
    end, parts = 0, []
    for gap, length in runs:
        parts.append(np.arange(end + gap - 1, end + gap - 1 + length, dtype=np.int32))
        end += gap + length - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap_code, "BLOCK", block)
        np.testing.assert_array_equal(back(np.concatenate(parts), end), np.concatenate(parts))


@pytest.mark.parametrize("density", [1e-6, 1e-4, 0.01, 0.3, 0.5, 0.7, 0.99, 1.0])
def test_every_density_comes_back(density: float) -> None:
    size = 3_000_000
    indices = drawn(density, size)
    np.testing.assert_array_equal(back(indices, size), indices)


@pytest.mark.parametrize(
    "indices", [[], [0], [LARGEST - 1], [0, LARGEST - 1], [LARGEST - 2, LARGEST - 1], [0, 1, 2, 3]]
)
def test_the_ends_come_back(indices: list[int]) -> None:
    assert back(np.array(indices, dtype=np.int32), LARGEST).tolist() == indices


@pytest.mark.parametrize(("density", "bound"), [(0.05, 0.75), (0.1, 0.61), (0.01, None), (0.25, None)])
def test_a_random_mask_is_coded_near_its_entropy(density: float, bound: float | None) -> None:
    indices = drawn(density, 4_000_000)
    bits = -math.log2(density) - (1 - density) / density * math.log2(1 - density)
    bytes_an_entry = len(gap_code.encode(indices)) / len(indices)
    assert bytes_an_entry < OVERHEAD * bits / 8
    assert bound is None or bytes_an_entry <= bound


def test_structured_masks_cost_little() -> None:
    """Whole rows cost a byte or two a row; whole columns no more than a random mask of their density."""
    whole_rows = rows(4096, 4096, 20)
    assert len(gap_code.encode(whole_rows)) < BYTES_OF_ANY_GAP * (4096 // 20 + 1)
    columns = np.add.outer(np.arange(4096) * 4096, np.arange(0, 4096, 20)).ravel().astype(np.int32)
    assert len(gap_code.encode(columns)) <= 0.75 * len(columns)
    # Dense and empty stretches in one tensor: each block has its own parameter.
    uneven = np.concatenate([drawn(0.5, 200_000), 200_000 + drawn(0.001, 40_000_000)]).astype(np.int32)
    apart = [
        gap_code.encode(part) for part in (uneven[uneven < 200_000], uneven[uneven >= 200_000] - 200_000)
    ]
    assert len(gap_code.encode(uneven)) < OVERHEAD * sum(len(part) for part in apart)


def test_one_huge_gap_does_not_blow_up_its_block() -> None:
    indices = np.append(drawn(0.05, 500_000), LARGEST - 1).astype(np.int32)
    assert len(gap_code.encode(indices)) < 4 * len(indices)
    np.testing.assert_array_equal(back(indices, LARGEST), indices)


@pytest.mark.invariant("Gap-coded indices come back, and damage is found.")
@pytest.mark.parametrize("indices", [drawn(0.1, 3000), rows(30, 40, 3)], ids=["entries", "runs"])
def test_damage_anywhere_is_found(indices: np.ndarray) -> None:
    stream = gap_code.encode(indices)
    for place in range(len(stream)):
        damaged = stream.copy()
        damaged[place] ^= 1 << place % 8
        with pytest.raises(UserError, match=r"^mask\.safetensors: tensor w: "):
            gap_code.decode(damaged, size=LARGEST, where="mask.safetensors: tensor w")
    for length in range(len(stream)):
        with pytest.raises(UserError, match=r"^here: .*truncated or damaged"):
            gap_code.decode(stream[:length], size=LARGEST, where="here")


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_forged_stream_is_refused_or_gives_indices_of_the_tensor(data: st.DataObject) -> None:
    """With a checksum that fits: whatever the bytes say, no index leaves the tensor and no length is believed."""
    size = data.draw(st.sampled_from([1, 100, 3000]))
    whole = gap_code.encode(data.draw(st.sampled_from([drawn(0.1, 3000), rows(30, 40, 3)])))[4:].tobytes()
    changes = data.draw(st.dictionaries(st.integers(0, len(whole) - 1), st.integers(0, 255), max_size=4))
    body = bytearray(whole[: data.draw(st.integers(5, len(whole)))])
    for place, byte in changes.items():
        if place < len(body):
            body[place] = byte
    stream = np.frombuffer(struct.pack("<I", zlib.crc32(body)) + bytes(body), dtype=np.uint8)
    try:
        indices = gap_code.decode(stream, size=size, where="here")
    except UserError:
        return
    assert len(indices) == 0 or (indices[0] >= 0 and indices[-1] < size)
    assert (np.diff(indices.astype(np.int64)) > 0).all()


def test_a_count_that_the_bytes_cannot_hold_allocates_nothing() -> None:
    for body in (
        struct.pack("<IB", LARGEST, 0),
        struct.pack("<IBI", LARGEST, 1, LARGEST),
        struct.pack("<IBBI", 8, 0, 0, LARGEST),
        struct.pack("<IBBIB", 8, 0, 255, 1, 255),
    ):
        stream = np.frombuffer(struct.pack("<I", zlib.crc32(body)) + body, dtype=np.uint8)
        with pytest.raises(UserError, match="the gap code gives"):
            gap_code.decode(stream, size=LARGEST, where="here")


def test_an_index_outside_of_the_tensor_is_refused() -> None:
    for indices in (drawn(0.1, 3000), rows(30, 40, 3)):
        with pytest.raises(UserError, match="the gap code gives"):
            gap_code.decode(gap_code.encode(indices), size=int(indices[-1]), where="here")
