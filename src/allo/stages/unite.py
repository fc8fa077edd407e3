"""The union of the rounds: their changes together, as one delta to the run's start."""

from typing import Any

import torch
from torch import Tensor

from allo import delta
from allo.files.artifacts import RunFolder, remove
from allo.files.rounds import round_name, trained, training_folders
from allo.models.start import read_start
from allo.recipe import Recipe
from allo.training.result import DELTA, MASK
from allo.weights.param_mask import ParamMask


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write the last training stage's folder at the top: the last round's model, and its delta to the run's start.

    If every stage trained under a mask, also write the union of all masks.
    """
    rounds = [RunFolder(folder.path / round_name(number)) for number in range(1, recipe.rounds + 1)]
    united, start = trained(recipe, folder), read_start(folder)
    united.mkdir(exist_ok=True)
    found = delta.extract(start.model, trained(recipe, rounds[-1]) / "model", united / DELTA)
    remove(united / "model")
    delta.apply(start.model, united / DELTA, united / "model")
    counts = {"changed_weights": found.num_changed, "delta_bytes": found.num_bytes}
    masks = [stage / MASK for one in rounds for stage in training_folders(recipe, one).values()]
    if not all(mask.exists() for mask in masks):
        return counts
    mask = _union([ParamMask.load(path) for path in masks])
    mask.save(united / MASK)
    return {"trained_weights": mask.num_selected, "density": mask.density, **counts}


def _union(masks: list[ParamMask]) -> ParamMask:
    """Return the mask of every weight that any of the masks selects."""
    indices: dict[str, Tensor] = {}
    for name in masks[0].shapes:
        found = [mask.indices[name] for mask in masks if name in mask.indices]
        if found:
            indices[name] = torch.cat(found).unique()
    return ParamMask(indices, shapes=masks[0].shapes, metadata={"criterion": "rounds"})
