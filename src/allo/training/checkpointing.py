"""A training checkpoint: the selected weights and the Trainer's state, in safetensors and without pickle."""

import json
import random
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from allo import delta
from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import (
    read_as,
    read_json,
    remove,
    sha256_file,
    sync,
    sync_all,
    write_json,
    written_aside,
)
from allo.models.internals import check
from allo.models.load import MODEL_FILES, locate_checkpoint
from allo.ranks import rank
from allo.training.resharding import resharded
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import combine, digests
from allo.weights.own_pieces import changes_from
from allo.weights.selected import SelectedWeights
from allo.weights.shards import Ranks

check("allo.ranks")
check("allo.training")  # here and not in the room: a check of numbers needs no Trainer

SELECTED_FILE = "selected.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
SCHEDULER_FILE = "scheduler.safetensors"
RNG_FILE = "rng.safetensors"
LOSS_FILE = "loss.safetensors"
STATE_FILE = "trainer_state.json"  # transformers' own
# Written last, with the digests of the checkpoint's files. A checkpoint without it is incomplete and is not resumed
# from.
COMPLETE_FILE = "complete"
_DIGEST = "digest"


class CheckpointedTrainer(Trainer):
    """A Trainer whose checkpoints hold `selected` instead of the model."""

    selected: SelectedWeights
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase

    def loss_state(self) -> dict[str, float]:
        """Return the loss's state between steps, other than weights; most losses have none."""
        return {}

    def load_loss_state(self, state: dict[str, float]) -> None:
        raise NotImplementedError

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model and its tokenizer; in a checkpoint only the selected weights, without `save_only_model`."""
        folder = Path(output_dir or self.args.output_dir)
        if _internal_call and not self.args.save_only_model and self._saves_part:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self.selected.state_dict(), folder / self._own(SELECTED_FILE))
        is_checkpoint = _internal_call and not self.args.save_only_model
        if self.selected.ranks.num > 1 and not is_checkpoint:
            save_shards(self.model, folder)
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if is_checkpoint:
            if state := self.loss_state():
                save_tree(folder / LOSS_FILE, state)
        else:
            if self.selected.ranks.num == 1:
                self.model.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    @property
    def _saves_part(self) -> bool:
        """Return whether this rank writes selected weights and their moments: the first, or of a sharded model each part's first."""
        ranks = self.selected.ranks
        return self.args.should_save if ranks.num == 1 else not ranks.is_copy

    def _own(self, name: str) -> str:
        return part_file(name, self.selected.ranks.place, self.selected.ranks.num)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        # Resumed from the last of `max_steps` within an epoch, transformers would take one step more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **named)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        found, written = _parts_of([path.name for path in folder.iterdir()])
        if not found:
            raise UserError(
                f"{folder}: training cannot resume from it: it has no {SELECTED_FILE}. A checkpoint saved with "
                "save_only_model is a model; give its folder as `model` to train it further."
            )
        if written == self.selected.ranks.num:
            self.selected.load_state_dict(load_file(folder / self._own(SELECTED_FILE)))
        else:
            self.selected.load_state_dict(self._resharded(folder, written)[0])
        if (folder / LOSS_FILE).exists():
            self.load_loss_state(load_tree(folder / LOSS_FILE))

    def _resharded(self, folder: Path, written: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return this rank's selected weights and optimizer's state from a checkpoint of another number of parts."""
        names = (SELECTED_FILE, OPTIMIZER_FILE)
        files = [[folder / part_file(name, place, written) for name in names] for place in range(written)]
        return resharded(
            ((load_file(own), load_tree(moments)) for own, moments in files), self.selected, str(folder)
        )

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._saves_part:
            save_tree(Path(output_dir) / self._own(OPTIMIZER_FILE), self.optimizer.state_dict())
        if not self.args.should_save:
            return
        save_tree(Path(output_dir) / SCHEDULER_FILE, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str) -> None:
        folder = Path(checkpoint)
        _, written = _parts_of([path.name for path in folder.iterdir()])
        if written == self.selected.ranks.num:
            self.optimizer.load_state_dict(load_tree(folder / self._own(OPTIMIZER_FILE)))
        else:
            self.optimizer.load_state_dict(self._resharded(folder, written)[1])
        self.lr_scheduler.load_state_dict(load_tree(folder / SCHEDULER_FILE))

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


def save_shards(model: PreTrainedModel, folder: Path) -> None:
    """Write a sharded model's folder like the one that it was loaded from; no rank has it as a whole."""
    source, _ = locate_checkpoint(model.name_or_path, MODEL_FILES)
    base = Checkpoint.open(source)
    change, ranks = changes_from(base, model, among=base.stored), Ranks.of(model)
    if ranks.is_first:
        hashes = {name: base.digest(name) for name in base.stored}
        whole = delta.Delta(change.indices, change.values, base.shapes, hashes, {})
        delta.apply(source, whole, folder)
    ranks.wait()


def part_file(name: str, place: int, num: int) -> str:
    """Return the name of a part's file: `selected.safetensors`, or `selected-1-of-2.safetensors`."""
    stem, suffix = name.split(".")
    return name if num == 1 else f"{stem}-{place + 1}-of-{num}.{suffix}"


def _parts_of(names: Collection[str]) -> tuple[int, int]:
    """Return the files with selected weights among these, and the number of parts that their names promise."""
    found = [re.fullmatch(r"selected(?:-\d+-of-(\d+))?\.safetensors", name) for name in names]
    promised = [int(match[1] or 1) for match in found if match]
    return len(promised), max(promised, default=1)


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint as complete once all of it is on disk."""
    sync_all(checkpoint)
    sync(checkpoint.parent)
    files = {path.name: sha256_file(path) for path in sorted(checkpoint.iterdir())}
    write_json(checkpoint / COMPLETE_FILE, {"files": files})


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """Return step -> complete checkpoint, in order of the steps."""
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name)
    }
    return {step: found[step] for step in sorted(found) if (found[step] / COMPLETE_FILE).exists()}


def last_sound_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint with intact files, after removing those that follow it.

    Damaged ones are reported; incomplete ones, left by a kill, are not.
    """
    whole = whole_checkpoints(folder)
    is_first = rank() == 0  # the other processes reach the same result but remove nothing
    for path in set(folder.glob("checkpoint-*")) - set(whole.values()) if is_first else ():
        remove(path)
    for checkpoint in reversed(whole.values()):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        if is_first:
            say(f"{checkpoint}: damaged ({damage}); removed, training resumes from the one before it")
            remove_checkpoint(checkpoint)
    return None


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, its mark first, so that a kill cannot leave a part that looks complete."""
    if checkpoint.is_dir():
        remove(checkpoint / COMPLETE_FILE)
    remove(checkpoint)


def _damage(checkpoint: Path) -> str | None:
    """Return the first fault of a checkpoint, or of the best one so far, which the end of training needs."""
    try:
        files = read_as(checkpoint / COMPLETE_FILE, dict[str, dict[str, str]], advice="").get("files", {})
    except (UserError, OSError) as error:
        return str(error).rstrip(".")
    parts, promised = _parts_of(files)
    if STATE_FILE not in files or parts < promised:
        return f"its mark lacks {SELECTED_FILE if parts < promised else STATE_FILE}"
    for name, digest in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != digest:
            return f"{name} has changed since it was written"
    best = read_json(checkpoint / STATE_FILE)["best_model_checkpoint"]
    if best is None or Path(best).name == checkpoint.name:
        return None
    damage = _damage(checkpoint.parent / Path(best).name)
    return damage and f"the best checkpoint, {Path(best).name}, is damaged: {damage}"


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], *, key: str = "") -> None:
    """Write tensors for a later process, under a key that says what they were computed from."""
    metadata = {"key": key, _DIGEST: combine(digests(tensors.items()))}
    with written_aside(path) as part:
        save_file(dict(tensors), part, metadata)


def kept_tensors(path: Path, *, key: str = "") -> dict[str, Tensor] | None:
    """Return the tensors that `keep_tensors` wrote under this key; None if they are absent or (reported) damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError):
        metadata, tensors = {}, {}
    if metadata.get(_DIGEST) != combine(digests(tensors.items())):
        say(f"{path}: damaged; it is computed again")
        return None
    return tensors if metadata.get("key") == key else None


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None; the header has the structure."""
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
    """Read what `save_tree` wrote, bit for bit; tensors on the CPU."""
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
