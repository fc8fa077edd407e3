"""The most important share of a model's weights with their scores, from which masks of smaller densities follow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from allo.errors import UserError
from allo.recipe.granularity import WEIGHT
from allo.weights import sparse_file
from allo.weights.finite import check_finite
from allo.weights.group_selection import select_groups, select_groups_among
from allo.weights.param_mask import ParamMask
from allo.weights.selection import Scores, num_to_select, with_starts
from allo.weights.shards import ONE, Ranks

_NO_RANK = (
    "They do not say which weights matter: look for infinite values in the model's weights or gradients, or "
    "choose another criterion."
)


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """`indices` (int32) and `scores` (fp32) of the top entries, both in order of the flat index.

    The kept entries are themselves an exact selection, so selecting among them gives the same result as
    selecting from the dense scores.
    """

    indices: dict[str, Tensor]
    scores: dict[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    @classmethod
    def top(
        cls,
        tensors: Scores,
        *,
        density: float,
        shapes: Mapping[str, tuple[int, ...]],
        metadata: Mapping[str, str],
        granularity: str = WEIGHT,
        ranks: Ranks = ONE,
    ) -> "ImportanceMap":
        """Keep the top `density` of all weights; `tensors` as in `selection.select`.

        Whole groups, of a `granularity` other than "weight", fall short of `num_asked` by less than one group.
        `metadata` describes the scores (base_fingerprint, criterion, ...) and is copied into masks. With `ranks`, each of
        which gives its own entries, the first rank gets the whole map, and the others the kept ones of their own entries.
        Raises `UserError`,
        naming the tensor, as the selection does, and for a score that is infinite.
        """
        k = num_to_select(density, sum(math.prod(shape) for shape in shapes.values()))
        indices = select_groups(tensors, k=k, shapes=shapes, granularity=granularity, ranks=ranks)
        scores = {name: torch.empty(len(kept)) for name, kept in indices.items()}
        for name, where, piece in with_starts(tensors()):
            if name not in indices:
                continue
            own: Tensor | slice
            if isinstance(where, Tensor):
                own, inside = (found.nonzero().squeeze(1) for found in _both(indices[name], where))
            else:
                bounds = torch.tensor([where, where + len(piece)])
                first, last = torch.searchsorted(indices[name], bounds).tolist()
                own, inside = slice(first, last), indices[name][first:last].long() - where
            scores[name][own] = piece[inside.to(piece.device)].cpu()
        # Infinity ranks above every number, so a score that is infinite is among those that were kept.
        check_finite(
            scores.items(), where=f"importance by criterion {metadata.get('criterion')}", advice=_NO_RANK
        )
        num_positive = torch.tensor(
            sum(int(one.count_nonzero()) for one in scores.values()), device=ranks.device
        )
        if density < 1 and not int(ranks.sum(num_positive)):
            raise UserError(
                f"importance by criterion {metadata.get('criterion')}: every weight scores 0, so that chance would choose. A warm-up "
                "that moves nothing has too few steps or too low a rate: lower its rows a step, or raise its learning rate."
            )
        for name in indices if ranks.num > 1 else ():
            where, found = ranks.gathered(indices[name]), ranks.gathered(scores[name])
            if ranks.is_first:
                order = where.argsort()
                indices[name], scores[name] = where[order], found[order]
        of_groups = {} if granularity == WEIGHT else {"granularity": granularity, "num_asked": str(k)}
        return cls(indices, scores, shapes, {"score_dtype": "float32", **metadata, **of_groups})

    @property
    def density(self) -> float:
        """The share of all weights that is kept: the largest density that a mask can have."""
        kept = sum(len(indices) for indices in self.indices.values())
        return kept / sum(math.prod(shape) for shape in self.shapes.values())

    def mask_at(self, density: float) -> ParamMask:
        """Return the mask of the top `density` of all weights, equal to a selection from the dense scores.

        Raises `UserError` if the density is not in (0, 1] or larger than the share that was kept.
        """
        k = num_to_select(density, sum(math.prod(shape) for shape in self.shapes.values()))
        num_kept = sum(len(indices) for indices in self.indices.values())
        if k > int(self.metadata.get("num_asked", num_kept)):
            raise UserError(
                f"density {density} selects more weights than the importance file keeps ({self.density:.4g}):"
                " locate again with a larger density"
            )
        granularity = self.metadata.get("granularity", WEIGHT)
        chosen = select_groups_among(
            lambda: ((name, self.indices[name], self.scores[name]) for name in self.indices),
            k=k,
            shapes=self.shapes,
            granularity=granularity,
        )
        of_groups = {} if granularity == WEIGHT else {"num_asked": str(k)}
        metadata = {**self.metadata, "density": str(density), **of_groups}
        return ParamMask(chosen, shapes=self.shapes, metadata=metadata)

    def save(self, path: str | Path, *, profile: sparse_file.Profile = "compact") -> None:
        """Write `path` (.safetensors) atomically; `profile` is that of `sparse_file`."""
        content = sparse_file.SparseFile(
            shapes=dict(self.shapes),
            indices=self.indices,
            column=self.scores,
            header={"metadata": dict(self.metadata)},
        )
        sparse_file.write(Path(path), "importance", content, column="scores", profile=profile)

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceMap":
        """Read a file that `save` wrote. Raises `UserError` if it is incomplete or invalid."""
        content = sparse_file.read(Path(path), "importance", column="scores")
        metadata = content.header.get("metadata")
        if not isinstance(metadata, dict):
            raise UserError(f"{path}: the header has no metadata: the file is damaged, write it again")
        for name, scores in content.column.items():
            if scores.dtype != torch.float32:
                raise UserError(f"{path}: {name}.scores must be float32, found {scores.dtype}")
        return cls(content.indices, content.column, content.shapes, metadata)


def _both(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return which entries of two sorted index tensors are in the other, bool each."""
    return torch.isin(one, other, assume_unique=True), torch.isin(other, one, assume_unique=True)
