"""The callback that moves trained weights into the model and ends a checkpoint."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from allo.training.checkpointing import mark_complete
from allo.weights.selected import SelectedWeights


class WriteBack(TrainerCallback):
    """A callback that writes master weights into the model after each step, and marks a checkpoint complete.

    Saving a checkpoint also ends a logging interval, so that a resumed run logs the same means.
    """

    def __init__(self, selected: SelectedWeights) -> None:
        self._selected = selected

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._selected.write_back()
        self._selected.zero_grad()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_log |= control.should_save

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._selected.ranks.wait()  # for the other parts' files
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
