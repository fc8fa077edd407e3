"""Trackers of experiments: which there are, one run of theirs a training, and an image of where weights train."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils as integrations

from allo.console import note, stage_at_work
from allo.errors import UserError
from allo.files.artifacts import remove
from allo.files.rounds import RoundRecipe, round_name
from allo.models.internals import check
from allo.recipe import Recipe
from allo.weights.param_mask import MaskRow, ParamMask

check(__name__)

PROJECT = "allo"
"""The project of runs in trackio, unless `project` names another."""
_CELL = 16  # pixels of an image for a tensor's density


def check_trackers(names: Sequence[str]) -> None:
    """Raise `UserError` for a tracker that is unknown or not installed, before the stages before it take their time."""
    available = integrations.get_available_reporting_integrations()
    for name in names:
        if name not in integrations.INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(integrations.INTEGRATION_TO_CALLBACK))
            raise UserError(
                f"report_to: {name!r} is no tracker that transformers knows: {known}, all or none."
            )
        if name not in available:
            raise UserError(f"report_to: {name} is not installed: run pip install {name}, or remove it.")


def tracker_names(recipe: Recipe, stage: str) -> dict[str, str]:
    """Return the names that a stage has in trackers, unless its block names others: runs of one recipe begin alike."""
    part = f"{round_name(recipe.number)}/" if isinstance(recipe, RoundRecipe) else ""
    return {"run_name": f"{recipe.name}/{part}{stage}", "project": PROJECT}


@contextmanager
def tracked(trainer: Trainer, mask: ParamMask | None, *, begins: bool) -> Iterator[None]:
    """Let each tracker of a training have a run of its own, with an image of the mask; `begins`: nothing is resumed."""
    folder = Path(trainer.args.output_dir)
    names = []
    for tracker in trainer.callback_handler.callbacks:
        if isinstance(tracker, integrations.TensorBoardCallback):
            names.append(f"tensorboard --logdir {_log_to(tracker, folder, begins=begins)}")
        elif isinstance(tracker, integrations.TrackioCallback):
            names.append(f"trackio show --project {trainer.args.project}")
        elif isinstance(tracker, tuple(integrations.INTEGRATION_TO_CALLBACK.values())):
            names.append(f"{type(tracker).__name__.removesuffix('Callback')}, as {trainer.args.run_name}")
    if not names:
        yield
        return
    note(stage_at_work("train"), f"tracked: {'; '.join(names)}")
    if mask is not None and 0 < mask.density < 1:
        trackers = tuple(trainer.callback_handler.callbacks)
        trainer.add_callback(_Image(density_image(mask.statistics()), trackers))
    # trackio prints its own instructions.
    with redirect_stdout(io.StringIO()):
        yield
    for tracker in trainer.callback_handler.callbacks:
        if isinstance(tracker, integrations.WandbCallback):
            tracker._wandb.finish()  # so that the next stage begins a run of its own


def _log_to(tracker: TrainerCallback, folder: Path, *, begins: bool) -> Path:
    """Give TensorBoard a folder beside the stages, named like the stage; return the folder to look at."""
    if tracker.logging_dir is not None:  # TENSORBOARD_LOGGING_DIR
        return Path(tracker.logging_dir)
    place = folder.parent / "tensorboard" / folder.name.lstrip("0123456789-")
    if begins:
        remove(place)
    tracker.logging_dir = str(place)
    return place.parent


class _Image(TrainerCallback):
    """An image of the trained weights for the trackers that take images."""

    def __init__(self, image: np.ndarray, trackers: Sequence[Any]) -> None:
        self.image, self.trackers = image, trackers

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for tracker in self.trackers:
            if isinstance(tracker, integrations.TensorBoardCallback):
                tracker.tb_writer.add_image("mask/density", self.image, state.global_step, dataformats="HWC")
            elif isinstance(tracker, integrations.TrackioCallback):
                trackio = tracker._trackio
                trackio.log({"mask/density_map": trackio.Image(self.image)})
            elif isinstance(tracker, integrations.WandbCallback):
                wandb = tracker._wandb
                wandb.log({"mask/density_map": wandb.Image(self.image)})


def density_image(rows: Sequence[MaskRow]) -> np.ndarray:
    """Return the share of trained weights by kind of tensor (down) and layer (across), uint8 [height, width, 3].

    White has none of them, dark blue the most; grey is where a layer has no such tensor.
    """
    kinds = list(dict.fromkeys(row.kind for row in rows))
    layers = list(dict.fromkeys(row.layer for row in rows))
    most = max(row.selected / max(row.total, 1) for row in rows) or 1.0
    image = np.full((len(kinds), len(layers), 3), 208, dtype=np.uint8)
    for row in rows:
        share = row.selected / max(row.total, 1) / most
        color = np.array([255, 255, 255]) * (1 - share) + np.array([8, 48, 107]) * share
        image[kinds.index(row.kind), layers.index(row.layer)] = color.round()
    return image.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
