"""A checkpoint of some shards, read as another number of shards: every entry and its moments arrive at their new rank."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from allo.errors import UserError
from allo.training.resharding import resharded

FLATS = {"a": 0, "norm": 1, "b": 0, "c": 0}  # the flat vector of each tensor
SIZES = {"a": 11, "norm": 2, "b": 0, "c": 7}
WHOLE = {
    name: torch.arange(100.0 * number, 100.0 * number + size)
    for number, (name, size) in enumerate(SIZES.items())
}


def cut(num: int) -> list[dict[str, tuple[int, int]]]:
    """Return each rank's intervals of the entries: uneven ones, with ranks that have none of some tensor."""
    edges = {
        name: [
            0,
            *sorted(torch.randint(size + 1, (num - 1,), generator=torch.manual_seed(num)).tolist()),
            size,
        ]
        for name, size in SIZES.items()
    }
    return [{name: (edges[name][place], edges[name][place + 1]) for name in SIZES} for place in range(num)]


def files(num: int) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Return what each of `num` ranks writes: an entry's moment is its negative, and the reference its half."""
    found = []
    for own in cut(num):
        here = {name: WHOLE[name][slice(*own[name])] for name in SIZES}
        state = {f"{name}.master": values for name, values in here.items()}
        state |= {f"{name}.slot.ref": values / 2 for name, values in here.items()}
        flats = {flat: torch.cat([here[name] for name in SIZES if FLATS[name] == flat]) for flat in (0, 1)}
        moments = {
            flat: {"step": torch.tensor(3.0), "exp_avg": -values}
            for flat, values in flats.items()
            if len(values)
        }
        found.append((state, {"state": moments, "param_groups": [{"lr": 0.1}]}))
    return found


def rank_of(place: int, num: int) -> Any:
    """Return as much of a rank's `SelectedWeights` as is asked."""
    lengths = torch.tensor([[last - first for first, last in own.values()] for own in cut(num)])
    ranges = {name: (FLATS[name], last - first) for name, (first, last) in cut(num)[place].items()}
    ranks = SimpleNamespace(place=place, every=lambda own: lengths)
    return SimpleNamespace(ranges=lambda: ranges, slots=["ref"], ranks=ranks)


@pytest.mark.parametrize(("written", "num"), [(1, 3), (3, 1), (2, 3), (3, 2), (4, 2), (2, 7)])
def test_each_entry_and_its_moments_arrive_at_the_new_rank(written: int, num: int) -> None:
    for place, (state, optimizer) in enumerate(files(num)):
        own, tree = resharded(files(written), rank_of(place, num), "there")
        assert own.keys() == state.keys()
        assert all(torch.equal(own[key], state[key]) for key in state)
        for flat, entries in optimizer["state"].items():
            assert torch.equal(tree["state"][flat]["exp_avg"], entries["exp_avg"])
            assert tree["state"][flat]["step"] == 3 and tree["param_groups"] == [{"lr": 0.1}]


def test_moments_in_blocks_are_refused() -> None:
    parts = files(2)
    parts[1][1]["state"][0]["exp_avg"] = torch.zeros(1, 64)
    with pytest.raises(UserError, match=r"there: another number of shards.*as many shards as before"):
        resharded(parts, rank_of(0, 3), "there")
