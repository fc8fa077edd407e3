"""Which weights of a model may change."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from allo.errors import UserError
from allo.recipe.granularity import WEIGHT
from allo.weights import sparse_file


@dataclass(frozen=True)
class MaskRow:
    """Selected and all weights of one kind of module in one layer."""

    layer: str
    kind: str
    selected: int
    total: int


@dataclass(frozen=True, eq=False)
class ParamMask:
    """A set of single weights.

    `indices`: name -> sorted unique row-major flat indices (int32, CPU), for tensors with selected
    entries only. `shapes` has every tensor of the model, so density is a share of all weights.
    `metadata` says where the mask comes from: base_fingerprint, criterion, density, granularity,
    score_dtype, as far as its maker knows them.
    Raises `UserError` for indices of another kind, and for a tensor that `shapes` does not have.
    """

    indices: dict[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]] = field(kw_only=True)
    metadata: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for name, indices in self.indices.items():
            if name not in self.shapes:
                raise UserError(f"the mask: {name} is none of the model's tensors, which `shapes` names")
            sparse_file.check_indices(name, indices, self.shapes[name], where="the mask")

    @classmethod
    def full(cls, shapes: Mapping[str, tuple[int, ...]]) -> "ParamMask":
        """Every weight."""
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        indices = {name: torch.arange(size, dtype=torch.int32) for name, size in sizes.items() if size}
        return cls(indices, shapes=shapes, metadata={"criterion": "full", "density": "1.0"})

    @classmethod
    def load(cls, path: str | Path) -> "ParamMask":
        """Read a mask. UserError when the file is not a whole and valid one."""
        content = sparse_file.read(Path(path), "mask")
        metadata = content.header.get("metadata")
        if not isinstance(metadata, dict):
            raise UserError(f"{path}: the header has no metadata: the file is damaged, write it again")
        return cls(content.indices, shapes=content.shapes, metadata=metadata)

    def save(self, path: str | Path, *, profile: sparse_file.Profile = "compact") -> None:
        """Write `path` (.safetensors), aside and then renamed; `profile` as in `sparse_file`."""
        header = {"metadata": {"granularity": WEIGHT, **self.metadata}}
        content = sparse_file.SparseFile(
            shapes=dict(self.shapes), indices=self.indices, column={}, header=header
        )
        sparse_file.write(Path(path), "mask", content, profile=profile)

    @property
    def num_weights(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_selected(self) -> int:
        return sum(len(indices) for indices in self.indices.values())

    @property
    def density(self) -> float:
        """Selected share of all weights of the model."""
        return self.num_selected / max(self.num_weights, 1)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """UserError, naming tensor and shapes, unless the mask was made for a model of these shapes."""
        sparse_file.check_same_shapes(self.shapes, shapes, what="the mask")

    def overlap(self, other: "ParamMask") -> float:
        """Share of the smaller mask's entries that both have; 0 when one selects nothing."""
        other.check(self.shapes)
        smaller = min(self.num_selected, other.num_selected)
        names = self.indices.keys() & other.indices.keys()
        return sum(_num_common(self.indices[name], other.indices[name]) for name in names) / max(smaller, 1)

    def statistics(self) -> list[MaskRow]:
        """Counts by (layer, kind) in the model's order of first appearance.

        kind is the last module's name (q_proj, embed_tokens, norm, ...), layer the first whole
        number in the tensor's name, or "-".
        """
        rows: dict[tuple[str, str], MaskRow] = {}
        for name, shape in self.shapes.items():
            parts = name.split(".")
            layer = next((part for part in parts if part.isdigit()), "-")
            kind = parts[-2] if len(parts) > 1 else name
            before = rows.get((layer, kind), MaskRow(layer, kind, 0, 0))
            selected = before.selected + len(self.indices.get(name, ()))
            rows[layer, kind] = MaskRow(layer, kind, selected, before.total + math.prod(shape))
        return list(rows.values())


def _num_common(a: Tensor, b: Tensor) -> int:
    """How many entries two sorted unique index tensors share; neither is empty."""
    position = torch.searchsorted(b, a).clamp_(max=max(len(b) - 1, 0))
    return int((b[position] == a).sum()) if len(b) else 0
