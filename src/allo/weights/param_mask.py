"""The set of a model's weights that may change."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from allo.errors import UserError
from allo.recipe.granularity import WEIGHT
from allo.weights import sparse_file


@dataclass(frozen=True)
class MaskRow:
    """The number of weights of one module kind in one layer, selected and in total."""

    layer: str
    kind: str
    selected: int
    total: int


@dataclass(frozen=True, eq=False)
class ParamMask:
    """A set of single weights.

    `indices`: name -> sorted unique row-major flat indices (int32, CPU), only for tensors with selected entries.
    `shapes` has every tensor of the model, so density is a share of all weights. `metadata` gives the mask's origin:
    base_fingerprint, criterion, density, granularity and score_dtype, as far as known. Raises `UserError` for
    malformed indices and for a tensor that is not in `shapes`.
    """

    indices: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]] = field(kw_only=True)
    metadata: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for name, indices in self.indices.items():
            if name not in self.shapes:
                raise UserError(f"the mask: {name} is not one of the model's tensors in `shapes`")
            sparse_file.check_indices(name, indices, self.shapes[name], where="the mask")

    @classmethod
    def full(
        cls, shapes: Mapping[str, tuple[int, ...]], *, among: Collection[str] | None = None
    ) -> "ParamMask":
        """Select every weight, or every weight of the tensors `among`."""
        sizes = {name: math.prod(shapes[name]) for name in shapes if among is None or name in among}
        for name, size in sizes.items():
            sparse_file.check_reach(name, size)
        indices = {name: torch.arange(size, dtype=torch.int32) for name, size in sizes.items() if size}
        return cls(indices, shapes=shapes, metadata={"criterion": "full", "density": "1.0"})

    @classmethod
    def load(
        cls, path: str | Path, *, density: float | None = None, keep: sparse_file.Keep | None = None
    ) -> "ParamMask":
        """Read a mask, or the most important weights of a run's `04-importance.safetensors`, up to a density.

        With `keep`, of a mask's indices only those that it returns, so that no more than one tensor's are in memory besides.

        Raises UserError unless the file is complete and valid. Importance needs a density, and a mask has its own.
        """
        is_importance = sparse_file.kind_of(Path(path)) == "importance"
        if is_importance and density is None:
            raise UserError(
                f"{path} holds importance, from which masks of several densities follow: give one, such as "
                f"ParamMask.load({str(path)!r}, density=0.1)"
            )
        if is_importance and density is not None:
            from allo.weights.importance_map import ImportanceMap  # it is built on this module

            return ImportanceMap.load(path).mask_at(density)
        content = sparse_file.read(Path(path), "mask", keep=keep)
        if density is not None:
            raise UserError(f"{path} is a mask, which has a density of its own: remove density={density:g}")
        metadata = content.header.get("metadata")
        if not isinstance(metadata, dict):
            raise UserError(f"{path}: the header has no metadata: the file is damaged, write it again")
        return cls(content.indices, shapes=content.shapes, metadata=metadata)

    def save(self, path: str | Path, *, profile: sparse_file.Profile = "compact") -> None:
        """Write `path` (.safetensors) to a temporary file, then rename it; `profile` as in `sparse_file`."""
        header = {"metadata": {"granularity": WEIGHT, **self.metadata}}
        content = sparse_file.SparseFile(
            shapes=dict(self.shapes), indices=dict(self.indices), column={}, header=header
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
        """Return the selected share of all weights of the model."""
        return self.num_selected / max(self.num_weights, 1)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError, naming tensor and shapes, unless the mask was made for a model of these shapes."""
        sparse_file.check_same_shapes(self.shapes, shapes, what="the mask")

    def overlap(self, other: "ParamMask") -> float:
        """Return the number of shared entries divided by the size of the smaller mask; 0 if either is empty."""
        other.check(self.shapes)
        smaller = min(self.num_selected, other.num_selected)
        names = self.indices.keys() & other.indices.keys()
        return sum(_num_common(self.indices[name], other.indices[name]) for name in names) / max(smaller, 1)

    def statistics(self) -> list[MaskRow]:
        """Count weights by (layer, kind), in the model's order of first appearance.

        kind is the last module's name (q_proj, embed_tokens, norm, ...). layer is the first whole number in the
        tensor's name, or "-".
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
    """Count the entries that two sorted, unique, non-empty index tensors share."""
    position = torch.searchsorted(b, a).clamp_(max=max(len(b) - 1, 0))
    return int((b[position] == a).sum()) if len(b) else 0
