"""The disk space that a run takes, known before it begins."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from allo.errors import UserError
from allo.files.sizes import size
from allo.models.start import DTYPES, is_ready
from allo.recipe import Recipe, trains_here
from allo.recipe.criteria import criterion_of
from allo.recipe.training import Training

_STATE = {False: 12, True: 6}
"""Bytes of a training checkpoint per trained weight, by `lean`: the weight's value and AdamW's moments."""


@dataclass(frozen=True)
class Disk:
    """The bytes that a run still has to write, at least, and those that are free."""

    needed: int
    free: int


def check_disk(recipe: Recipe, num_weights: int) -> Disk:
    """Return the run's space. Raises `UserError` if the disk has clearly too little, or is not writable."""
    folder = recipe.run_folder
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder}: cannot write the run folder (in {place}). Choose another with --set out=DIR."
        )
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    disk = Disk(max(0, _needed(recipe, num_weights) - there), shutil.disk_usage(place).free)
    if disk.needed > disk.free:
        raise UserError(
            f"{folder}: the run writes at least {size(disk.needed)}, and {size(disk.free)} are free on that disk. Make "
            "room, or choose a folder on another disk with --set out=DIR."
        )
    return disk


def _needed(recipe: Recipe, num_weights: int) -> int:
    """Return the most bytes in the run's folder at one time, of the files whose size the recipe determines."""
    whole = num_weights * DTYPES[recipe.dtype].itemsize
    lasting = 0 if _starts_in_place(recipe) else whole
    most = lasting + (_checkpoints(recipe.sft.training, num_weights) if recipe.sft else 0)
    for _ in range(recipe.rounds):
        if recipe.locate is not None:
            if criterion_of(recipe.locate.criterion).needs == "warm-up":
                most = max(most, lasting + _checkpoints(recipe.locate.training, num_weights))
            lasting += int(4 * recipe.max_density * num_weights)  # the importance, in fp32
            lasting += 4 * num_weights * recipe.reads_warmup
        for block in (getattr(recipe, name) for name in recipe.training_stages):
            if trains_here(block):
                trained = int(block.density * num_weights)
                most = max(most, lasting + _checkpoints(block.training, trained, lean=block.lean))
            lasting += whole
    return max(most, lasting + whole * (recipe.rounds > 1))


def _starts_in_place(recipe: Recipe) -> bool:
    """Return whether the run needs no copy of the model; True for a hub id, which is not loaded to find out."""
    if recipe.sft is not None:
        return False
    return not Path(recipe.model).expanduser().exists() or is_ready(recipe) is not None


def _checkpoints(training: Training, num_weights: int, *, lean: bool = False) -> int:
    """Return the bytes of the training checkpoints that exist at one time."""
    given = training.model_extra or {}
    if given.get("save_strategy", "steps") == "no" or training.save_steps >= 1:
        return 0  # or an unknown number
    most = [2, int(1 / training.save_steps), *(steps for steps in [given.get("max_steps", -1)] if steps > 0)]
    return min(most) * num_weights * _STATE[lean]
