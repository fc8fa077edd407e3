"""A delta as a PEFT adapter. SHiRA (arXiv:2406.13175) adds sparse differences to the weights of Linear layers.

PEFT computes W + D in the weight's own precision. A delta has new values, so each difference is chosen such that the
rounded sum is exactly the new value. A layer without such a D within the adapter's rank is stored whole, as PEFT's
`modules_to_save`. The model then has the weights, and so the logits, of the tuned model.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from allo.console import track
from allo.delta.file import Delta, read_delta
from allo.delta.patch import check_bits, check_layout
from allo.errors import UserError
from allo.files.artifacts import folder_written_aside, give_default_mode
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import digests
from allo.weights.places import gather, scatter

WEIGHT = ".weight"
# fp32 represents every number of these exactly.
FLOATS = {torch.float32, torch.bfloat16, torch.float16}
# PEFT's name for "no layer has an adapter".
NO_TARGET = "dummy-target-modules"


@dataclass(frozen=True)
class ShiraInfo:
    """An adapter in numbers: r; layers with sparse differences and stored whole; entries; bytes of the folder."""

    rank: int
    num_sparse: int
    num_whole: int
    num_changed: int
    num_padding: int
    num_bytes: int


@dataclass(frozen=True, eq=False)
class Increments:
    """The `values` fp32 [k] to add to a Linear weight of `shape` [m, n] at sorted flat `indices` int32 [k]."""

    shape: tuple[int, int]
    indices: Tensor
    values: Tensor

    @property
    def lowest_rank(self) -> int:
        """Return the smallest r of a SHiRA adapter, with r(m + n) entries, that has room for these."""
        return -(-len(self.indices) // sum(self.shape))

    @property
    def highest_rank(self) -> int:
        m, n = self.shape
        return m * n // (m + n)

    def padded(self, rank: int) -> "Increments":
        """Return these entries padded to r(m + n), at the first free places.

        The padding is -0.0, which changes no number when added, not even a zero's sign.
        """
        size = rank * sum(self.shape)
        free = torch.ones(size, dtype=torch.bool)
        free[self.indices[self.indices < size].long()] = False
        places = free.nonzero().squeeze(1)[: size - len(self.indices)].int()
        indices, order = torch.cat((self.indices, places)).sort()
        values = torch.cat((self.values, torch.full((len(places),), -0.0)))[order]
        return Increments(self.shape, indices, values)


def increments(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Return (d, reached): differences [k] and, for each, whether the rounded sum old + d equals new.

    The suitable d form an interval around the real number new - old. If any number of the dtype lies in it, so does
    the rounded difference or its neighbour on the other side. A zero's sign is ignored, and a NaN is never reached.
    """
    rounded = d = new - old
    for limit in (-torch.inf, torch.inf):
        beside = torch.nextafter(rounded, torch.full_like(rounded, limit))
        d = torch.where((old + d != new) & (old + beside == new), beside, d)
    return d, old + d == new


def common_rank(layers: Mapping[str, Increments]) -> tuple[int, set[str]]:
    """Return the r that fits most layers, the lowest on ties, and these layers; (0, none) for no layers.

    PEFT has one r for all layers and refuses r(m + n) > mn.
    """
    best: tuple[int, set[str]] = (0, set())
    for rank in sorted({layer.lowest_rank for layer in layers.values()}):
        fit = {name for name, layer in layers.items() if layer.lowest_rank <= rank <= layer.highest_rank}
        if len(fit) > len(best[1]):
            best = rank, fit
    return best


def export_shira(
    base: str | Path, delta: str | Path, out: str | Path, *, linear: Mapping[str, str]
) -> ShiraInfo:
    """Write the folder `out`, which `PeftModel.from_pretrained` loads onto the model in `base`.

    `linear` has the weights of the model's Linear layers that no other module shares: their names on disk, and those in
    the model, which the adapter has. Memory holds the adapter.
    Raises UserError for another base, and for a changed tensor that is not in `linear`, naming the first.
    """
    checkpoint, change = Checkpoint.open(base), read_delta(delta)
    check_layout(change, checkpoint, what=f"the delta {delta}")
    _check_exportable(checkpoint, change, linear, what=str(delta))
    with folder_written_aside(Path(out)) as part:
        layers = _layers(checkpoint, change, where=f"{base} is not the base that {delta} was made from")
        rank, fit = common_rank(layers)
        sparse = {name: layers[name].padded(rank) for name in fit}
        whole = [name for name in change.indices if name not in fit]
        tensors = _sparse_tensors(sparse, linear) | _whole_tensors(checkpoint, change, whole, linear)
        weights = part / "adapter_model.safetensors"
        save_file(tensors, weights, metadata={"format": "pt"})
        give_default_mode(weights)
        modules = (sorted(_module(linear[name]) for name in names) for names in (fit, whole))
        config = _config(rank, *modules)
        (part / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return ShiraInfo(
        rank=rank,
        num_sparse=len(sparse),
        num_whole=len(whole),
        num_changed=change.num_changed,
        num_padding=sum(len(sparse[name].indices) - len(layers[name].indices) for name in fit),
        num_bytes=sum(file.stat().st_size for file in Path(out).iterdir()),
    )


def _check_exportable(base: Checkpoint, change: Delta, linear: Collection[str], *, what: str) -> None:
    if not change.indices:
        raise UserError(f"{what} changes nothing: there is nothing to export")
    for name in (name for name in base.stored if name in change.indices):
        if name not in linear:
            raise UserError(
                f"{what} changes {name}, which is not a Linear layer's weight, or is shared with another layer: a "
                "SHiRA adapter cannot hold it; use --format full"
            )
        if change.values[name].dtype not in FLOATS:
            raise UserError(
                f"{what} changes {name}, whose dtype is {change.values[name].dtype}: a SHiRA adapter holds 32 bits;"
                " use --format full"
            )


def _layers(base: Checkpoint, change: Delta, *, where: str) -> dict[str, Increments]:
    """Return the changed layers that sparse differences can express, after checking every tensor of the base."""
    layers = {}
    for name, entry in track(base.stored.items(), "delta, export", total=len(base.stored), unit="tensor"):
        if name not in change.indices:
            check_bits(name, base.digest(name), change, where=where)
            continue
        tensor, indices = base.read(name), change.indices[name]
        check_bits(name, digests([(name, tensor)])[name], change, where=where)
        values, reached = increments(gather(tensor, indices).float(), change.values[name].float())
        if bool(reached.all()):
            rows, columns = entry.shape
            layers[name] = Increments((rows, columns), indices, values)
    return layers


def _module(weight: str) -> str:
    return weight.removesuffix(WEIGHT)


def _sparse_tensors(layers: Mapping[str, Increments], linear: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors under PEFT's names: row and column numbers int32 [2, r(m + n)], and the values."""
    tensors = {}
    for name, layer in layers.items():
        rows, columns = layer.indices // layer.shape[1], layer.indices % layer.shape[1]
        module = f"base_model.model.{_module(linear[name])}"
        tensors[f"{module}.shira_indices"] = torch.stack((rows, columns))
        tensors[f"{module}.shira_weight"] = layer.values
    return tensors


def _whole_tensors(
    base: Checkpoint, change: Delta, names: Collection[str], linear: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return whole layers: the tuned weight and, because PEFT expects the whole module, the base's bias if any."""
    tensors = {}
    for name in names:
        live = f"base_model.model.{_module(linear[name])}"
        for part in (WEIGHT, ".bias"):
            if _module(name) + part in base.stored:
                tensors[live + part] = base.read(_module(name) + part)
        scatter(tensors[live + WEIGHT], change.indices[name], change.values[name])
    return tensors


def _config(rank: int, sparse: list[str], whole: list[str]) -> dict[str, object]:
    """Return PEFT's ShiraConfig. An unknown mask type keeps PEFT from drawing a random mask per layer on loading."""
    return {
        "peft_type": "SHIRA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": max(rank, 1),
        "mask_type": "allo",
        "init_weights": True,
        "fan_in_fan_out": False,
        "target_modules": sparse or NO_TARGET,
        "modules_to_save": whole or None,
    }
