"""Selecting whole groups equals taking them one by one in order of their norm, until the next does not fit."""

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from allo.errors import UserError
from allo.recipe.granularity import Granularity
from allo.weights import group_selection
from allo.weights.group_selection import Tiles, select_groups, select_groups_among
from allo.weights.importance_map import ImportanceMap
from allo.weights.places import Columns, Rows
from allo.weights.selected import SelectedWeights
from allo.weights.selection import num_to_select, select, stable_hash

GRANULARITIES = ["row", "column", "block(2)", "block(4)", "block(100)"]
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)
Group = tuple[str, list[int], float]


def groups_of(tensors: dict[str, Tensor], granularity: str) -> list[Group]:
    """(name, flat indices, norm) of every group, by slicing each matrix."""
    found: list[Group] = []
    for name, tensor in tensors.items():
        scores = tensor.double()
        if tensor.ndim < 2 or not tensor.numel():
            found += [(name, [i], float(score)) for i, score in enumerate(scores.reshape(-1))]
            continue
        scores = scores.reshape(len(tensor), math.prod(tensor.shape[1:]))
        grid = np.arange(scores.numel()).reshape(scores.shape)
        height, width = scores.shape
        if granularity.startswith("block"):
            side = int(granularity[6:-1])
            tiles = [
                (slice(i, i + side), slice(j, j + side))
                for i, j in itertools.product(range(0, height, side), range(0, width, side))
            ]
        elif granularity == "row":
            tiles = [(slice(i, i + 1), slice(None)) for i in range(height)]
        else:
            tiles = [(slice(None), slice(j, j + 1)) for j in range(width)]
        found += [
            (name, grid[tile].reshape(-1).tolist(), float(scores[tile].square().mean().sqrt()))
            for tile in tiles
        ]
    return found


def greedy_answer(tensors: dict[str, Tensor], k: int, granularity: str) -> dict[str, list[int]]:
    def key(group: Group) -> tuple[float, int, str, int]:
        name, indices, norm = group
        mixed = int(stable_hash(name, torch.tensor(indices[0])))
        return -float(np.float32(norm)), mixed, name, indices[0]

    chosen: dict[str, list[int]] = {}
    taken = 0
    for name, indices, _ in sorted(groups_of(tensors, granularity), key=key):
        taken += len(indices)
        if taken > k:
            break
        chosen.setdefault(name, []).extend(indices)
    return {name: sorted(indices) for name, indices in chosen.items()}


def selected(tensors: dict[str, Tensor], k: int, granularity: str) -> dict[str, list[int]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    result = select_groups(lambda: tensors.items(), k=k, shapes=shapes, granularity=granularity)
    assert all(indices.dtype == torch.int32 for indices in result.values())
    return {name: indices.tolist() for name, indices in result.items()}


def model_scores(seed: int = 0) -> dict[str, Tensor]:
    """Matrices whose sides no block divides, a vector, a scalar, three dimensions, an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 9), "b": (9, 5), "norm": (11,), "scale": (), "conv": (3, 2, 4), "none": (0, 4)}
    # A scale a line, so that norms differ by more than rounding.
    return {
        name: torch.rand(shape, generator=generator) * torch.rand(shape[:1] + (1,) * (len(shape) - 1))
        for name, shape in shapes.items()
    }


TIES = {"a": torch.ones(6, 8), "b": torch.zeros(8, 6), "norm": torch.ones(10)}
INFINITE = {"a": torch.rand(6, 8).index_fill(0, torch.tensor(2), math.inf), "b": torch.rand(8, 6)}


@every_granularity
@pytest.mark.parametrize("tensors", [model_scores(), TIES, INFINITE], ids=["model", "ties", "infinite"])
def test_it_is_the_greedy_selection(tensors: dict[str, Tensor], granularity: str) -> None:
    num_weights = sum(tensor.numel() for tensor in tensors.values())
    largest = max(len(indices) for _, indices, _ in groups_of(tensors, granularity))
    for k in [0, *range(largest, num_weights, 7), num_weights]:
        assert selected(tensors, k, granularity) == greedy_answer(tensors, k, granularity)


@pytest.mark.invariant("Groups stay whole, and less than one group is missing.")
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 100), st.sampled_from([*GRANULARITIES, "block(3)"])
)
def test_groups_stay_whole_and_less_than_one_is_missing(
    height: int, width: int, seed: int, granularity: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"w": torch.rand(height, width, generator=generator), "b": torch.rand(5, generator=generator)}
    sizes = {frozenset(indices): len(indices) for name, indices, _ in groups_of(tensors, granularity)}
    largest = max(sizes.values())
    for k in range(largest, height * width + 6):
        found = selected(tensors, k, granularity)
        assert k - largest < sum(map(len, found.values())) <= k
        chosen = set(found.get("w", []))
        for name, indices, _ in groups_of(tensors, granularity):
            if name == "w":
                assert len(chosen.intersection(indices)) in (0, len(indices))


@every_granularity
def test_a_selection_of_fewer_weights_is_part_of_one_of_more(granularity: str) -> None:
    tensors = model_scores(3)
    before: set[tuple[str, int]] = set()
    for k in range(63, 158):
        found = selected(tensors, k, granularity)
        now = {(name, index) for name, indices in found.items() for index in indices}
        assert before <= now
        before = now


@every_granularity
def test_neither_order_nor_pieces_matter(granularity: str) -> None:
    tensors = model_scores(1)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    whole = selected(tensors, 100, granularity)
    assert selected(dict(reversed(tensors.items())), 100, granularity) == whole

    def pieces() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            yield from ((name, piece) for piece in tensor.reshape(-1).split(4))

    found = select_groups(pieces, k=100, shapes=shapes, granularity=granularity)
    assert {name: indices.tolist() for name, indices in found.items()} == whole


def test_equal_hashes_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_selection, "stable_hash", lambda _, indices: torch.zeros_like(indices))
    tensors = {"b": torch.ones(3, 4), "a": torch.ones(2, 4)}
    assert selected(tensors, 12, "row") == {"a": list(range(8)), "b": [0, 1, 2, 3]}


def test_a_weight_of_a_short_row_counts_as_much_as_one_of_a_long_row() -> None:
    tensors = {
        "long": torch.full((3, 40), 1.0),
        "short": torch.full((3, 4), 1.1),
        "norm": torch.full((3,), 1.05),
    }
    assert selected(tensors, 12, "row") == {"short": list(range(12))}
    assert selected(tensors, 15, "row") == {"short": list(range(12)), "norm": [0, 1, 2]}


def test_the_groups_of_a_large_tensor_are_numbered_exactly() -> None:
    """Above 2^24, single precision skips every second number."""
    tiles = Tiles(1 << 13, 1 << 13, 1, 1)
    indices = torch.tensor([(1 << 24) + 1, (1 << 25) + 1, (1 << 26) - 1], dtype=torch.int32)
    for numbered in (tiles.groups_of(indices), tiles.first_entries(indices)):
        assert torch.equal(numbered, indices) and numbered.dtype == torch.int32


def test_norms_are_summed_in_double_precision() -> None:
    """Added to 4096 squared one by one, a thousand ones are lost in single precision; 31 squared is not."""
    many, few = torch.ones(1001), torch.zeros(1001)
    many[0], few[:2] = 4096.0, torch.tensor([4096.0, 31.0])
    assert selected({"w": torch.stack([few, many])}, 1001, "row") == {"w": list(range(1001, 2002))}


def test_single_weights_and_vectors_are_selected_as_without_groups() -> None:
    matrix = model_scores(2)
    vectors = {name: tensor.reshape(-1) for name, tensor in (model_scores(2) | TIES).items()}
    for tensors, granularity in ((matrix, "weight"), (vectors, "row"), (vectors, "block(2)")):
        expected = select(lambda tensors=tensors: tensors.items(), k=70)
        assert selected(tensors, 70, granularity) == {n: i.tolist() for n, i in expected.items()}


@pytest.mark.parametrize(("granularity", "kind"), [("row", Rows), ("column", Columns)])
def test_a_model_trains_its_selected_lines_as_lines(granularity: str, kind: type) -> None:
    """From scores to the layer that computes nothing else, through the mask's flat indices."""
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7))
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    top = ImportanceMap.top(
        lambda: ((name, param.detach().abs()) for name, param in model.named_parameters()),
        density=0.5,
        shapes=shapes,
        metadata={},
        granularity=granularity,
    )
    selected_weights = SelectedWeights(model, top.mask_at(0.4))
    kinds = {type(part.places) for part in selected_weights._parts if part.param.ndim == 2}
    assert kinds == {kind}


@every_granularity
def test_a_mask_of_any_smaller_density_is_the_direct_selection(tmp_path: Path, granularity: str) -> None:
    tensors = model_scores(4) | {"zeros": torch.zeros(9, 7)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    # 0.9 reaches into the zeros, all of which tie.
    made = ImportanceMap.top(
        lambda: tensors.items(), density=0.9, shapes=shapes, metadata={}, granularity=granularity
    )
    made.save(tmp_path / "importance.safetensors")
    loaded = ImportanceMap.load(tmp_path / "importance.safetensors")
    for density in (0.4, 0.5, 0.71, 0.88, 0.9):
        mask = loaded.mask_at(density)
        k = num_to_select(density, num_weights)
        direct = greedy_answer(tensors, k, granularity)
        assert {name: indices.tolist() for name, indices in mask.indices.items()} == direct
        assert mask.metadata["granularity"] == granularity
        assert int(mask.metadata["num_asked"]) == k >= mask.num_selected
    with pytest.raises(UserError, match=r"density 0\.91 selects more weights than the importance file keeps"):
        loaded.mask_at(0.91)


def test_groups_of_a_sparse_stream_that_do_not_come_are_not_chosen() -> None:
    entries = [("w", torch.arange(4, 8, dtype=torch.int32), torch.zeros(4))]
    found = select_groups_among(lambda: entries, k=12, shapes={"w": (3, 4)}, granularity="row")
    assert {name: indices.tolist() for name, indices in found.items()} == {"w": [4, 5, 6, 7]}


def test_single_weights_of_a_sparse_stream_are_selected_as_without_groups() -> None:
    entries = [("w", torch.arange(4, 8, dtype=torch.int32), torch.tensor([1.0, 4.0, 2.0, 3.0]))]
    found = select_groups_among(lambda: entries, k=2, shapes={"w": (3, 4)}, granularity="weight")
    assert {name: indices.tolist() for name, indices in found.items()} == {"w": [5, 7]}


def test_a_score_that_is_no_number_is_refused() -> None:
    scores = torch.ones(3, 4)
    scores[1, 2] = scores[2, 3] = math.nan
    with pytest.raises(UserError, match=r"tensor w, flat index 6: .*NaN"):
        selected({"w": scores}, 4, "row")
    pieces = [("w", piece) for piece in scores.reshape(-1).split(5)]
    with pytest.raises(UserError, match=r"tensor w, flat index 6: .*NaN"):
        select_groups(lambda: pieces, k=4, shapes={"w": (3, 4)}, granularity="row")


def test_a_first_group_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="has 4 weights, but only 3 are to be selected"):
        selected({"w": torch.ones(3, 4)}, 3, "row")


@pytest.mark.parametrize(
    "text", ["rows", "block", "block(1)", "block(0)", "block(-4)", "block(2.5)", "Row", ""]
)
def test_another_granularity_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"none of weight, row, column and block\(n\)"):
        Granularity.parse(text)


MEASURE = """
import torch
from allo.weights.group_selection import select_groups
from allo.weights.selection import PIECE
peak = lambda: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
pieces = (200 << 20) // (4 * PIECE)
for num in (pieces // 3, pieces + pieces // 3):
    shapes = {f"w{i}": (1024, PIECE // 1024) for i in range(num)}
    stream = lambda: ((name, (torch.arange(PIECE) % 251 + i).float()) for i, name in enumerate(shapes))
    select_groups(stream, k=5000, shapes=shapes, granularity="block(32)")
    print(peak() << 10)
"""


def test_memory_does_not_grow_with_the_model() -> None:
    """200 MB of scores more; the allocator's noise is a third of that."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    few, many = map(int, run.stdout.split())
    assert 0 < few <= many < few + (64 << 20)
