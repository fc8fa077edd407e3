"""Run a trainer to its end, from its last whole checkpoint, in a stage's folder."""

import difflib
import inspect
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from allo.console import console
from allo.errors import UserError
from allo.hf.checkpointing import COMPLETE_FILE, whole_checkpoints
from allo.hf.selected_trainer import SelectedTrainer, check_arguments

# What the Trainer measures with a clock; it would differ between two equal runs.
_CLOCKED = ("_runtime", "_per_second", "_preparation_time")


def training_arguments(
    training: dict[str, Any], *, folder: Path, seed: int, device: torch.device, key: str
) -> TrainingArguments:
    """`transformers.TrainingArguments` of a recipe's block.

    `key` names the block in errors. Raises `UserError` for a key or value that transformers or
    `check_arguments` refuses, and for one of the hub's: a recipe is kept with its results, where a
    secret must not lie.
    """
    for name in training:
        if name.endswith("token"):
            raise UserError(f"{key}.{name}: no secret belongs in a recipe; set HF_TOKEN in the environment.")
        if name.startswith(("push_to_hub", "hub_")):
            raise UserError(f"{key}.{name}: nothing is uploaded; upload the result with `hf upload`.")
    known = inspect.signature(TrainingArguments).parameters
    for name in training.keys() - known.keys():
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "see the fields of transformers.TrainingArguments."
        raise UserError(f"{key}.{name}: unknown key; {hint}")
    own = {"output_dir": str(folder), "seed": seed, "use_cpu": device.type == "cpu"}
    for name in own.keys() & training.keys():
        raise UserError(f"{key}.{name}: set by allo from the recipe; remove it.")
    quiet = {"disable_tqdm": not console.is_terminal, "log_level": "error"}
    try:
        arguments = TrainingArguments(**(quiet | training | own))
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{key}: transformers.TrainingArguments refuses it: {error}") from error
    try:
        check_arguments(arguments)
    except UserError as error:
        raise UserError(f"{key}.{error}") from error
    return arguments


def train(trainer: SelectedTrainer) -> list[dict[str, float]]:
    """Train to the end, resuming from the last whole checkpoint; returns what was logged, a step a row.

    Checkpoints that a kill cut short are removed.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(Path(trainer.args.output_dir)))
    # A checkpoint's log is read back with its keys sorted.
    logged = [
        {name: value for name, value in sorted(row.items()) if not name.endswith(_CLOCKED)}
        for row in trainer.state.log_history
    ]
    return [row for row in logged if "loss" in row or "eval_loss" in row]


def state_bytes(trainer: SelectedTrainer) -> int:
    """Bytes of the training state: indices, masters, gradient, slots and the optimizer's moments."""
    moments = (
        value.nbytes
        for state in (trainer.optimizer.state.values() if trainer.optimizer else ())
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    return trainer.selected.num_bytes + sum(moments)


def remove_checkpoints(folder: Path) -> None:
    """Once a stage's result stands, its checkpoints have served."""
    for checkpoint in folder.glob("checkpoint-*"):
        _remove(checkpoint)


def _remove(checkpoint: Path) -> None:
    """Its mark goes first, so that what a kill leaves of it is not resumed from."""
    (checkpoint / COMPLETE_FILE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _last_whole_checkpoint(folder: Path) -> str | None:
    whole = list(whole_checkpoints(folder).values())
    for checkpoint in set(folder.glob("checkpoint-*")) - set(whole):
        shutil.rmtree(checkpoint)
    return str(whole[-1]) if whole else None
