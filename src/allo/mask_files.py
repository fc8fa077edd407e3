"""A mask from two folders of weights, read piece by piece: no model is built, no tokenizer needed."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from allo.checkpoints import Checkpoint, check_same_layout
from allo.console import track
from allo.core import importance
from allo.core.fingerprints import Digest, combine
from allo.core.group_selection import select_groups
from allo.core.param_mask import ParamMask
from allo.core.selection import num_to_select, stable_hash
from allo.errors import UserError
from allo.granularity import WEIGHT, Granularity

# Those that two folders suffice for: the others look at gradients.
CRITERIA: dict[str, importance.Criterion] = {
    "delta": importance.delta,
    "bottom": importance.bottom,
    "magnitude": importance.magnitude,
    "random": importance.random,
}


def mask_from_checkpoints(
    base: str | Path,
    tuned: str | Path,
    *,
    density: float,
    out: str | Path,
    criterion: str = "delta",
    seed: int = 0,
    granularity: str = WEIGHT,
) -> ParamMask:
    """Select the top `density` of all floating-point weights, write the mask to `out`, return it.

    Resident memory does not grow with the model, only with the mask itself. Where fewer weights
    differ than are asked for (identical folders at worst) the mask still has exactly k: the rest are unchanged weights drawn
    by their stable hash, and a UserWarning says how many. Whole groups (`granularity` "row", "column" or
    "block(n)") fall short of k by less than one group.

    Raises UserError for an impossible density, criterion or granularity, for folders that cannot be read or
    differ in layout, and for NaN weights.
    """
    if criterion not in CRITERIA:
        raise UserError(
            f"criterion {criterion!r} cannot be taken from two checkpoints: choose {', '.join(CRITERIA)}"
        )
    Granularity.parse(granularity)
    if criterion == "bottom" and granularity != WEIGHT:
        raise UserError(
            f"criterion 'bottom' ranks single weights: granularity {granularity!r} does not apply"
        )
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    check_same_layout(before, after)
    shapes = {name: entry.shape for name, entry in before.stored.items() if entry.dtype.is_floating_point}
    k = num_to_select(density, sum(math.prod(shape) for shape in shapes.values()))

    base_fingerprint, num_changed = _survey(before, after)
    if criterion == "delta" and num_changed < k:
        warnings.warn(
            f"only {num_changed} weights of {base} and {tuned} differ, {k} are asked for: the other"
            f" {k - num_changed} are drawn from the unchanged weights by a stable hash",
            stacklevel=2,
        )

    def scores() -> Iterator[tuple[str, Tensor]]:
        for name in track(shapes, "mask, select", total=len(shapes)):
            start = 0
            for theta, theta_tuned in zip(before.pieces(name), after.pieces(name), strict=True):
                statistic = theta_tuned
                if criterion == "random":
                    statistic = stable_hash(name, torch.arange(start, start + len(theta)), seed=seed)
                yield name, CRITERIA[criterion](theta, statistic)
                start += len(theta)

    metadata = {
        "base_fingerprint": base_fingerprint,
        "criterion": criterion,
        "density": str(density),
        "num_changed": str(num_changed),
        "score_dtype": "float32",
        "seed": str(seed),
    }
    if granularity != WEIGHT:
        metadata |= {"granularity": granularity, "num_asked": str(k)}
    selected = select_groups(scores, k=k, shapes=shapes, granularity=granularity)
    mask = ParamMask(selected, shapes=shapes, metadata=metadata)
    mask.save(out)
    return mask


def _survey(before: Checkpoint, after: Checkpoint) -> tuple[str, int]:
    """One pass: the base's fingerprint and how many floating-point entries differ."""
    digests, num_changed = {}, 0
    for name, entry in track(before.stored.items(), "mask, compare", total=len(before.stored)):
        state = Digest(entry.dtype, entry.shape)
        for old, new in zip(before.pieces(name), after.pieces(name), strict=True):
            state.update(old)
            if entry.dtype.is_floating_point:
                num_changed += int(importance.delta(old, new).count_nonzero())
        digests[name] = state.hexdigest()
    return combine(digests), num_changed
