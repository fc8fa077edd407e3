"""Places: every description of a selection takes out and puts back the very entries that the flat indices name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allo.weights.places import BLOCK_BITS, Columns, Entries, Everything, Places, Rows, places_of

MATRIX = (7, 5)
# Two bytes an entry, and a block's number and size for each block with an entry.
BYTES_AN_ENTRY = 2
BYTES_A_BLOCK = 8


def flat(indices: list[int]) -> Tensor:
    return torch.tensor(sorted(indices), dtype=torch.int32)


def lines(
    shape: tuple[int, int], *, rows: list[int] | None = None, columns: list[int] | None = None
) -> Tensor:
    grid = torch.arange(shape[0] * shape[1], dtype=torch.int32).view(shape)
    grid = grid if rows is None else grid[rows]
    return (grid if columns is None else grid[:, columns]).reshape(-1)


KINDS = {
    "all": (lines(MATRIX), Everything),
    "rows": (lines(MATRIX, rows=[1, 2, 6]), Rows),
    "one row": (lines(MATRIX, rows=[6]), Rows),
    "columns": (lines(MATRIX, columns=[0, 3]), Columns),
    "last column": (lines(MATRIX, columns=[4]), Columns),
    "entries": (flat([0, 3, 4, 17, 34]), Entries),
    # As many as a row has, but over the edge of two.
    "no row": (flat([3, 4, 5, 6, 7]), Entries),
    # As many as a column has, one of them a column further.
    "no column": (flat([0, 5, 10, 15, 20, 25, 31]), Entries),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_selection_has_the_cheapest_description(kind: str) -> None:
    indices, expected = KINDS[kind]
    assert type(places_of(indices, MATRIX)) is expected


@pytest.mark.invariant(
    "Every description of a selection takes out and puts back the entries that its flat indices name."
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_description_does_what_the_indices_say(kind: str, dtype: torch.dtype) -> None:
    indices, _ = KINDS[kind]
    check(places_of(indices, MATRIX), indices, torch.randn(MATRIX).to(dtype))


def test_a_tensor_of_three_dimensions_has_rows() -> None:
    indices = torch.arange(2 * 3 * 4, dtype=torch.int32).view(2, 3, 4)[1].reshape(-1)
    places = places_of(indices, (2, 3, 4))
    assert type(places) is Rows
    check(places, indices, torch.randn(2, 3, 4))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, (3 << BLOCK_BITS) - 1), min_size=1, max_size=40))
def test_block_local_entries_keep_every_index(chosen: set[int]) -> None:
    edges = {0, (1 << 15) - 1, 1 << 15, (1 << 16) - 1, 1 << 16, (3 << 16) - 1}
    indices = flat(list(chosen | edges))
    places = Entries.at(indices)
    assert torch.equal(places.indices(), indices)
    assert places.num_bytes == BYTES_AN_ENTRY * len(indices) + BYTES_A_BLOCK * len(places.sizes)


def check(places: Places, indices: Tensor, tensor: Tensor) -> None:
    before = tensor.clone()
    assert torch.equal(places.gather(tensor), before.reshape(-1)[indices.long()])

    total = torch.ones(len(indices))
    places.add_to(total, tensor)
    assert torch.equal(total, 1 + before.reshape(-1)[indices.long()].float())

    values = torch.randn(len(indices))
    old = places.exchange(tensor, values)
    expected = before.clone()
    expected.view(-1)[indices.long()] = values.to(tensor.dtype)
    assert torch.equal(tensor, expected)
    places.exchange(tensor, old)
    assert torch.equal(tensor, before)
