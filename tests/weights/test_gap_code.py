"""The gap code gives back what it was given, near the entropy, and refuses what it did not write."""

import math
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allo.errors import UserError
from allo.weights import gap_code

LARGEST = 2**31 - 1
# Over the entropy: what Huffman codes of geometric gaps, their tables and sampling noise cost.
OVERHEAD = 1.03
# A run of thousands of equal gaps, and the wide gap before it.
BYTES_OF_A_RUN = 8


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
@given(indices=st.sets(st.integers(0, LARGEST - 1) | st.integers(0, 200), max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_set_of_indices_comes_back(indices: set[int]) -> None:
    given_ones = np.array(sorted(indices), dtype=np.int32)
    decoded = back(given_ones, LARGEST)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, given_ones)


@given(
    runs=st.lists(
        st.tuples(st.integers(1, 40_000) | st.integers(253, 258), st.integers(1, 40_000)),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_runs_come_back(runs: list[tuple[int, int]]) -> None:
    """Runs of the second number of entries, each behind a gap of the first number less one."""
    end, parts = 0, []
    for gap, length in runs:
        parts.append(np.arange(end + gap - 1, end + gap - 1 + length, dtype=np.int32))
        end += gap + length - 1
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
    """Whole rows cost a few bytes a row; whole columns far less than a random mask of their density."""
    whole_rows = rows(4096, 4096, 20)
    assert len(gap_code.encode(whole_rows)) < BYTES_OF_A_RUN * (4096 // 20 + 1)
    columns = np.add.outer(np.arange(4096) * 4096, np.arange(0, 4096, 20)).ravel().astype(np.int32)
    assert len(gap_code.encode(columns)) < BYTES_OF_A_RUN * 4096
    # Dense and empty stretches in one tensor: each has its own code.
    uneven = np.concatenate([drawn(0.5, 200_000), 200_000 + drawn(0.001, 40_000_000)]).astype(np.int32)
    apart = [
        gap_code.encode(part) for part in (uneven[uneven < 200_000], uneven[uneven >= 200_000] - 200_000)
    ]
    assert len(gap_code.encode(uneven)) < 1.05 * sum(len(part) for part in apart)


def test_one_huge_gap_does_not_blow_up_its_block() -> None:
    indices = np.append(drawn(0.05, 500_000), LARGEST - 1).astype(np.int32)
    assert len(gap_code.encode(indices)) < 4 * len(indices)
    np.testing.assert_array_equal(back(indices, LARGEST), indices)


@pytest.mark.invariant("Gap-coded indices come back, and damage is found.")
@pytest.mark.parametrize("indices", [drawn(0.1, 3000), rows(30, 40, 3), drawn(0.002, 40_000)])
def test_damage_anywhere_is_found(indices: np.ndarray) -> None:
    """Only bits that fill up a byte, which mean nothing, may pass."""
    stream = gap_code.encode(indices)
    harmless = 0
    for place in range(len(stream)):
        for flip in (1, 1 << place % 8, 0xFF):
            damaged = stream.copy()
            damaged[place] ^= flip
            try:
                found = gap_code.decode(damaged, size=LARGEST, where="here")
            except UserError:
                continue
            np.testing.assert_array_equal(found, indices)
            harmless += 1
    assert harmless < 10
    for length in range(len(stream)):
        with pytest.raises(UserError, match=r"^here: .*truncated, damaged"):
            gap_code.decode(stream[:length], size=LARGEST, where="here")
    with pytest.raises(UserError, match=r"^here: .*truncated, damaged"):
        gap_code.decode(np.append(stream, np.uint8(0)), size=LARGEST, where="here")


def packed(body: bytes) -> np.ndarray:
    return np.frombuffer(zlib.compress(body), dtype=np.uint8)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_forged_stream_is_refused_or_gives_indices_of_the_tensor(data: st.DataObject) -> None:
    """With a checksum that fits: whatever the bytes say, no index leaves the tensor and no length is believed."""
    size = data.draw(st.sampled_from([1, 100, 3000, 40_000, LARGEST]))
    made = data.draw(st.sampled_from([drawn(0.1, 3000), rows(30, 40, 3), drawn(0.002, 40_000)]))
    whole = zlib.decompress(gap_code.encode(made))
    changes = data.draw(st.dictionaries(st.integers(0, len(whole) - 1), st.integers(0, 255), max_size=4))
    body = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place, byte in changes.items():
        if place < len(body):
            body[place] = byte
    try:
        indices = gap_code.decode(packed(bytes(body)), size=size, where="here")
    except UserError:
        return
    assert indices.dtype == np.int32
    assert len(indices) == 0 or (indices[0] >= 0 and indices[-1] < size)
    assert (np.diff(indices.astype(np.int64)) > 0).all()


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<I", LARGEST),
        struct.pack("<IB", 1, gap_code.WIDE),
        struct.pack("<IBB", 1, 3, 3),
        struct.pack("<IBIB", 1, gap_code.WIDE, 300, 0),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(body: bytes) -> None:
    with pytest.raises(UserError, match="bytes: impossible"):
        gap_code.decode(packed(body), size=LARGEST, where="here")


@pytest.mark.parametrize("gap", [2**31 - 1, 2**31, 2**32 - 1])
def test_gaps_beyond_every_tensor_are_refused(gap: int) -> None:
    """A tensor's size in a forged header is not believed either."""
    body = struct.pack("<IBBII", 2, gap_code.WIDE, gap_code.WIDE, gap, gap)
    planes = np.frombuffer(body[6:], dtype=np.uint8).reshape(2, 4).T.tobytes()
    with pytest.raises(UserError, match="outside of a tensor"):
        gap_code.decode(packed(body[:6] + planes), size=2**40, where="here")


def test_no_more_is_unpacked_than_the_tensor_can_have() -> None:
    bomb = packed(struct.pack("<I", 100_000_000) + bytes(100_000_000))
    tracemalloc.start()
    with pytest.raises(UserError, match="made for a larger tensor"):
        gap_code.decode(bomb, size=3000, where="here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_an_index_outside_of_the_tensor_is_refused() -> None:
    for indices in (drawn(0.1, 3000), rows(30, 40, 3)):
        with pytest.raises(UserError, match="the gap code gives index"):
            gap_code.decode(gap_code.encode(indices), size=int(indices[-1]), where="here")
