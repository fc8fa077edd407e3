"""A training checkpoint: the selected weights and the Trainer's state, in safetensors and without pickle."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from allo.core.selected import SelectedWeights

SELECTED_FILE = "selected.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
SCHEDULER_FILE = "scheduler.safetensors"
RNG_FILE = "rng.safetensors"
LOSS_FILE = "loss.safetensors"
# Written last into a checkpoint: without it the checkpoint was cut short, and is not resumed from.
COMPLETE_FILE = "complete"


class CheckpointedTrainer(Trainer):
    """A Trainer whose checkpoints hold `selected` in place of the model."""

    selected: SelectedWeights
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase

    def loss_state(self) -> dict[str, float]:
        """What the loss remembers from step to step, beside the weights; most remember nothing."""
        return {}

    def load_loss_state(self, state: dict[str, float]) -> None:
        raise NotImplementedError

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole model where a user asks for it; in a checkpoint the selected weights alone."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if _internal_call:
            save_file(self.selected.state_dict(), folder / SELECTED_FILE)
            if state := self.loss_state():
                save_tree(folder / LOSS_FILE, state)
        else:
            self.model.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.selected.load_state_dict(load_file(folder / SELECTED_FILE))
        if (folder / LOSS_FILE).exists():
            self.load_loss_state(load_tree(folder / LOSS_FILE))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.args.should_save:
            return
        save_tree(Path(output_dir) / OPTIMIZER_FILE, self.optimizer.state_dict())
        save_tree(Path(output_dir) / SCHEDULER_FILE, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str) -> None:
        self.optimizer.load_state_dict(load_tree(Path(checkpoint) / OPTIMIZER_FILE))
        self.lr_scheduler.load_state_dict(load_tree(Path(checkpoint) / SCHEDULER_FILE))

    def _save_rng_state(self, output_dir: str) -> None:
        if not self.args.should_save:
            return
        algorithm, keys, *position = np.random.get_state(legacy=True)
        states = {
            "python": random.getstate(),
            "numpy": (algorithm, np.asarray(keys).tolist(), *position),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }
        save_tree(Path(output_dir) / RNG_FILE, states)

    def _load_rng_state(self, checkpoint: str) -> None:
        states = load_tree(Path(checkpoint) / RNG_FILE)
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["cpu"])
        torch.cuda.set_rng_state_all(states["cuda"])


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint that was written to its end, in order of the steps."""
    found = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*")}
    return {step: found[step] for step in sorted(found) if (found[step] / COMPLETE_FILE).exists()}


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None: the structure goes into the header."""
    tensors: dict[str, Tensor] = {}

    def pack(value: Any) -> Any:
        match value:
            case Tensor():
                name = str(len(tensors))
                tensors[name] = value.detach().clone().contiguous()
                return {"tensor": name}
            case dict():
                return {"dict": [[pack(key), pack(entry)] for key, entry in value.items()]}
            case list() | tuple():
                return {type(value).__name__: [pack(entry) for entry in value]}
            case None | bool() | int() | float() | str():
                return value
        raise AssertionError(f"{path.name}: cannot store a {type(value).__name__}")

    save_file(tensors, path, {"tree": json.dumps(pack(tree))})


def load_tree(path: Path) -> Any:
    """What `save_tree` wrote, bit for bit; tensors on the CPU."""
    with safe_open(path, "pt") as file:

        def unpack(value: Any) -> Any:
            match value:
                case {"tensor": name}:
                    return file.get_tensor(name)
                case {"dict": entries}:
                    return {unpack(key): unpack(entry) for key, entry in entries}
                case {"tuple": entries}:
                    return tuple(unpack(entry) for entry in entries)
                case {"list": entries}:
                    return [unpack(entry) for entry in entries]
            return value

        return unpack(json.loads(file.metadata()["tree"]))
