"""Run by torchrun: compare sharded models of many families with whole ones; a line a family goes to the file in argv."""

import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import converted
from allo.delta import Delta, patch_of
from allo.errors import UserError
from allo.models.load import Model, load_model
from allo.models.policy import per_token_logps
from allo.models.shards import load_shards
from allo.training.checkpointing import save_shards
from allo.weights.checkpoints import Checkpoint
from allo.weights.layout import Layout, trained_parameters
from allo.weights.own_pieces import changes_from
from allo.weights.selected import SelectedWeights
from allo.weights.shards import named_rows, own_interval, own_rows
from sharded_cases import every_third
from tiny_families import FAMILIES, family_model

BATCH = {
    "input_ids": torch.arange(1, 17).view(2, 8),
    "attention_mask": torch.ones(2, 8, dtype=torch.long),
    "sources": torch.tensor([[3, 4, 5], [11, 12, 13]]),
    "targets": torch.tensor([[5, 6, 7], [13, 14, 15]]),
    "completion_mask": torch.ones(2, 3, dtype=torch.bool),
}


def gradients(model: Model) -> tuple[Tensor, SelectedWeights]:
    """Return log-probs, and the selected weights with a gradient and moved by 1."""
    selected = SelectedWeights(model, every_third(model), slots=("ref",))
    logps = per_token_logps(model, BATCH)
    logps.sum().backward()
    assert all(param.grad is None for param in model.parameters()), "a dense gradient is left"
    for master in selected.masters().values():
        master += 1
    selected.write_back()
    with torch.no_grad():
        moved = per_token_logps(model, BATCH)
        with selected.swapped("ref"):
            back = per_token_logps(model, BATCH)
    return torch.cat([logps.detach(), moved, back]), selected


def compare(folder: Path, out: Path) -> None:
    model = load_shards(folder, dtype=torch.float32, device="cpu")
    whole = load_model(folder, dtype=torch.float32, device="cpu")
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name]), f"buffer {name}"
    theirs, mine = trained_parameters(whole), trained_parameters(model)
    assert theirs.keys() == mine.keys()
    for name, param in mine.items():
        first, last = own_interval(param)
        assert torch.equal(own_rows(param).reshape(-1), theirs[name].data.reshape(-1)[first:last]), name
    (logps, own), (expected, every) = gradients(model), gradients(whole)
    torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)
    for name, found in own.gradients().items():
        first, last = own_interval(mine[name])
        mask = torch.zeros(theirs[name].numel(), dtype=torch.bool)
        # Entry by entry: which of the whole tensor's selected entries are in these rows.
        mask[_places(whole, name)] = True
        before = int(mask[:first].sum())
        expected_part = every.gradients()[name][before : before + len(found)]
        assert int(mask[first:last].sum()) == len(found), name
        scale = max(1.0, float(every.gradients()[name].abs().max()) if len(every.gradients()[name]) else 1.0)
        torch.testing.assert_close(found / scale, expected_part / scale, rtol=1e-4, atol=1e-4, msg=name)
    base = Checkpoint.open(folder)
    change, other = (changes_from(base, each, among=base.stored) for each in (model, whole))
    save_shards(model, out)
    again = load_shards(folder, dtype=torch.float32, device="cpu")
    patch_of(again, Delta(other.indices, other.values, base.shapes, {}, {})).exchange()
    for (name, rows), (_, expected_rows) in zip(named_rows(again), named_rows(model), strict=True):
        assert torch.equal(rows, expected_rows), f"patched {name}"
    if dist.get_rank() == 0:
        assert change.indices.keys() == other.indices.keys() and change.num == other.num
        for name, where in other.indices.items():
            assert torch.equal(change.indices[name], where), name
            assert torch.equal(change.values[name], other.values[name]), name


def _places(whole: Model, name: str) -> Tensor:
    mask = Layout.of(whole).live_mask(every_third(whole))
    return mask.indices[name].long()


MAKERS: dict[str, Callable[[str, Path], object]] = {
    "family": lambda family, place: family_model(family).save_pretrained(place),
    "converted": converted.saved,
    "bare": converted.bare,
    "doubled": converted.doubled,
}
ALL = [
    *(f"converted:{name}" for name in converted.FAMILIES),
    *(f"bare:{name}" for name in converted.BARE),
    *(f"doubled:{name}" for name in converted.TIED),
    *(f"family:{name}" for name in FAMILIES),
]


def main(folder: Path, names: list[str]) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name in names:
        kind, _, family = name.partition(":")
        place = folder / name.replace(":", "-")
        if dist.get_rank() == 0:
            MAKERS[kind](family, place)
        dist.barrier()
        try:
            compare(place, folder / f"{place.name}-out")
            said = "equal"
        except UserError as error:
            said = f"refused: {error}"
        except Exception:
            said = traceback.format_exc()[-1500:]
        with (folder / f"said-{dist.get_rank()}").open("a") as file:
            file.write(f"{name}\t{said!r}\n")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ALL)
