"""A mixture's routed experts, by the names and shapes of its tensors on disk.

A checkpoint stores an expert in tensors of its own (`mlp.experts.3.gate_proj.weight`), or a layer's experts in one
tensor whose first index counts them (`mlp.experts.gate_up_proj`). Granite's and JetMoE's are called `input_linear` and
`output_linear`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from allo.weights.param_mask import MaskRow

_ALONE = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_WITHOUT_NAME = re.compile(r"\.(input|output)_linear\.")


def is_of_experts(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor belongs to routed experts."""
    return "experts" in name.split(".") or (len(shape) == 3 and _WITHOUT_NAME.search(name) is not None)


def expert_rows(shapes: Mapping[str, tuple[int, ...]], indices: Mapping[str, Tensor]) -> list[MaskRow]:
    """Count weights by layer and expert (kind "expert 3"), in the model's order of first appearance; none without experts.

    `shapes` has every tensor of the model, `indices` the selected flat indices. A tensor that holds several experts in
    an unknown order is left out.
    """
    rows: dict[tuple[str, int], MaskRow] = {}
    for name, shape in shapes.items():
        layer = next((part for part in name.split(".") if part.isdigit()), "-")
        for expert, selected, total in _of_tensor(name, shape, indices.get(name)):
            before = rows.get((layer, expert), MaskRow(layer, f"expert {expert}", 0, 0))
            rows[layer, expert] = replace(
                before, selected=before.selected + selected, total=before.total + total
            )
    return list(rows.values())


def _of_tensor(name: str, shape: tuple[int, ...], indices: Tensor | None) -> Iterator[tuple[int, int, int]]:
    """Yield the experts of one tensor, each with its selected and all weights in it."""
    if alone := _ALONE.search(name):
        yield int(alone[1]), 0 if indices is None else len(indices), math.prod(shape)
    elif is_of_experts(name, shape) and (len(shape) > 2 or (len(shape) == 2 and name.endswith("bias"))):
        size = math.prod(shape[1:])
        counts = [0] * shape[0]
        if indices is not None and size:
            counts = torch.bincount(indices.long() // size, minlength=shape[0]).tolist()
        yield from ((expert, count, size) for expert, count in enumerate(counts))
