"""The one file format of masks, importances and deltas: some entries of every tensor.

A safetensors file with `<tensor name>.indices` (int32, sorted, unique, row-major flat indices in
the checkpoint's coordinates), where asked one `<tensor name>.<column>` of equal length beside it,
and a JSON header under the single metadata key `allo`, because safetensors does not keep several
keys in order and the same content must give the same bytes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from allo.artifacts import written_aside
from allo.errors import UserError

SCHEMA = 1
_KEY = "allo"


@dataclass(frozen=True)
class SparseFile:
    """What a file holds. `shapes` has every tensor of the model, `indices` only those with entries."""

    shapes: dict[str, tuple[int, ...]]
    indices: dict[str, Tensor]
    column: dict[str, Tensor]
    header: dict[str, Any]


def write(path: Path, kind: str, content: SparseFile, *, column: str = "") -> None:
    """Write `content` aside, then rename: `path` is complete or absent. `kind` is "mask", "delta", ..."""
    assert column or not content.column
    tensors = {f"{name}.indices": indices.cpu().contiguous() for name, indices in content.indices.items()}
    tensors |= {f"{name}.{column}": values.cpu().contiguous() for name, values in content.column.items()}
    shapes = {name: list(shape) for name, shape in content.shapes.items()}
    header = {"kind": kind, "schema": SCHEMA, "shapes": shapes, **content.header}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as part:
        save_file(tensors, part, metadata={_KEY: json.dumps(header, sort_keys=True)})


def read(path: Path, kind: str, *, column: str = "") -> SparseFile:
    """Read and check what `write` wrote.

    Raises UserError when the file is missing, truncated, of another kind or schema, or when its
    indices are not int32, sorted, unique and within their tensor's shape.
    """
    header, tensors = _open(path)
    found = header.pop("kind", None)
    if found != kind:
        raise UserError(f"{path} is not a {kind} of allo: its header says {found!r}")
    schema = header.pop("schema", None)
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema!r}, this allo reads schema {SCHEMA}: write it again")
    shapes = _shapes(path, header.pop("shapes", None))
    columns = ("indices", column) if column else ("indices",)
    wanted = {f"{name}.{part}" for name in shapes for part in columns}
    for key in sorted(tensors.keys() - wanted):
        raise UserError(f"{path}: unexpected tensor {key}, which the header's shapes do not name")
    content = SparseFile(shapes=shapes, indices={}, column={}, header=header)
    for name in shapes:
        present = [f"{name}.{part}" in tensors for part in columns]
        if not any(present):
            continue
        if not all(present):
            missing = f"{name}.{columns[present.index(False)]}"
            raise UserError(f"{path}: tensor {missing} is missing: the file is damaged, write it again")
        content.indices[name] = tensors[f"{name}.indices"]
        check_indices(name, content.indices[name], shapes[name], where=str(path))
        if column:
            content.column[name] = tensors[f"{name}.{column}"]
            if content.column[name].shape != content.indices[name].shape:
                raise UserError(f"{path}: {name}.{column} and {name}.indices differ in length")
    return content


def check_indices(name: str, indices: Tensor, shape: tuple[int, ...], *, where: str) -> None:
    """UserError unless `indices` is a sorted, unique int32 [num_entries] within a tensor of `shape`."""
    if indices.dtype != torch.int32 or indices.dim() != 1:
        found = f"{indices.dtype} of shape {list(indices.shape)}"
        raise UserError(f"{where}: {name}.indices must be a one-dimensional int32 tensor, found {found}")
    if len(indices) == 0:
        return
    if not bool((indices[1:] > indices[:-1]).all()):
        raise UserError(f"{where}: {name}.indices must be sorted and unique, they are not")
    if int(indices[0]) < 0 or int(indices[-1]) >= math.prod(shape):
        reach = f"{int(indices[0])} to {int(indices[-1])}"
        raise UserError(
            f"{where}: {name}.indices go from {reach}, outside of a tensor of shape {list(shape)}"
        )


def check_same_shapes(
    mine: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
    """UserError naming the first tensor, and both shapes, where `what` and a model differ."""
    for name in [*mine, *(name for name in others if name not in mine)]:
        left, right = (list(side[name]) if name in side else None for side in (mine, others))
        if left != right:
            sides = f"{left or 'absent'} there, {right or 'absent'} in this model"
            raise UserError(f"{what} was made for another model: tensor {name} is {sides}")


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}): write it again") from error
    try:
        header = json.loads(metadata.get(_KEY, ""))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is a safetensors file but not one of allo's: it has no allo header"
        ) from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: the allo header must be a JSON object")
    return header, tensors


def _shapes(path: Path, raw: object) -> dict[str, tuple[int, ...]]:
    def is_shape(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(size, int) and size >= 0 for size in value)

    if not isinstance(raw, dict) or not all(is_shape(value) for value in raw.values()):
        raise UserError(f"{path}: the header has no valid shapes: the file is damaged, write it again")
    return {name: tuple(value) for name, value in raw.items()}
