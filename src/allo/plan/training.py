"""The memory of the stages that train, from a rehearsal of the trainer's own steps."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allo.core.live_bytes import LiveBytes
from allo.core.param_mask import ParamMask
from allo.core.rehearsal import Rehearsal
from allo.core.selection import num_to_select
from allo.hf.arguments import training_arguments
from allo.hf.models import Model
from allo.hf.rehearsal import one_word_tokenizer, rehearsed_model, words
from allo.hf.selected_trainer import SelectedTrainer
from allo.hf.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.hf.training import train
from allo.plan.lengths import training_lengths
from allo.plan.memory import StagePlan
from allo.recipe import Recipe

_INDEX_BYTES = 4  # of a mask's entry in host memory


def plan_training(recipe: Recipe, stage: str) -> StagePlan:
    """The peak of an optimizer step that is not the first, on one micro-batch of the longest rows."""
    with tempfile.TemporaryDirectory() as folder, Rehearsal() as rehearsal:
        trainer = take_a_step(rehearsed_model(recipe), recipe, stage, rehearsal, Path(folder))
    lengths = training_lengths(recipe)
    rows = "pairs" if isinstance(trainer, ImproveTrainer) else "rows"
    taken = dict(rehearsal.at_peak)
    host = taken.pop("host", 0)
    masks = _INDEX_BYTES * trainer.selected.num_selected if trainer.selected.density < 1 else 0
    return StagePlan(
        stage,
        f"{trainer.rows_a_step} {rows} of {lengths.prompt} + {lengths.completion} tokens",
        taken,
        host=masks + host,
    )


def take_a_step(model: Model, recipe: Recipe, stage: str, live: LiveBytes, folder: Path) -> SelectedTrainer:
    """Train `model` for a step under `live`, from its weights on, and return the trainer as it is then."""
    live.hold([*model.parameters(), *model.buffers()], "weights")
    live.kind = lambda tensor: "state"
    trainer = _trainer(recipe, stage, model, folder)
    # Gradient and moments are there from the second step on.
    trainer.selected.gradients()
    trainer.create_optimizer().step()
    _name_kinds(live, trainer)
    _fill_a_micro_batch(trainer)
    live.start_again()
    train(trainer)
    return trainer


def _trainer(recipe: Recipe, stage: str, model: Model, folder: Path) -> SelectedTrainer:
    """The stage's trainer, for one step, with one of its longest rows."""
    block = getattr(recipe, stage)
    arguments = training_arguments(
        block.training.model_dump() | {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True},
        folder=folder,
        seed=recipe.seed,
        device=torch.device("cpu"),
        key=f"{stage}.training",
        lean=getattr(block, "lean", False),
    )
    lengths = training_lengths(recipe)
    prompt, completion = words(lengths.prompt), words(lengths.completion - 1)  # EOS comes on top
    mask = spread_mask(model, density=1.0 if stage in ("sft", "locate") else block.density)
    given: dict[str, Any] = {"mask": mask, "max_length": recipe.max_length}
    for option in ("beta", "max_tokens_per_batch", "reference", "shared_prefix", "lean"):
        if hasattr(block, option):
            given[option] = getattr(block, option)
    if stage in ("sft", "forget"):
        kind: Any = SftTrainer if stage == "sft" else ForgetTrainer
        row = {"prompt": prompt, "completion": completion}
    else:
        kind = ImproveTrainer
        row = {"prompt": prompt, "chosen": completion, "rejected": completion}
    trainer: SelectedTrainer = kind(model, arguments, [row], one_word_tokenizer(), **given)
    return trainer


def _fill_a_micro_batch(trainer: SelectedTrainer) -> None:
    """Give the trainer as many copies of its row as a micro-batch has.

    One is a token shorter: with padding, attention takes a mask.
    """
    (row,) = trainer.train_dataset
    if trainer.reference == "precomputed":  # not in a rehearsal, where it would have no numbers
        row |= {
            name.replace("_ids", "_ref_logps"): [0.0] * len(ids)
            for name, ids in row.items()
            if name.endswith("_ids") and name != "prompt_ids"
        }
    micro_batch, *_ = trainer._micro_batches([row] * trainer.rows_a_step)
    rows = [row | {"number": number} for number in range(len(micro_batch))]
    if len(rows) > 1:
        rows[-1]["prompt_ids"] = row["prompt_ids"][1:]
    trainer.train_dataset, trainer.rows_a_step = rows, len(rows)


def _name_kinds(live: LiveBytes, trainer: SelectedTrainer) -> None:
    """By what they look like: new tensors of the shape of a weight are its gradient, and so on."""
    selected, model = trainer.selected, trainer.model
    weights = {param.shape for param in model.parameters()}
    flats = {flat.shape for flat in selected.parameters()}
    has_slot = trainer.compares and trainer.reference == "swap"
    slot = list(selected.slot("ref").values()) if has_slot else []
    live.hold(slot, "host" if trainer.lean else "slots")
    slots = set() if trainer.lean else {bits.shape for bits in slot}
    vocabulary = model.get_output_embeddings().weight.shape[0]

    def kind(tensor: Tensor) -> str:
        if tensor.shape in flats:
            return "state"
        if tensor.shape in slots and tensor.dtype == model.dtype:
            return "slots"
        if tensor.shape in weights:
            return "gradient"
        return "log-probs" if tensor.shape[-1:] == (vocabulary,) else "activations"

    live.kind = kind


class _Spread(Mapping[str, Tensor]):
    """Evenly spread indices, made when they are asked for: together they would take 4 bytes an entry."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, density: float) -> None:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total = num_to_select(density, sum(sizes.values()))
        self._sizes = sizes
        # Rounded sums, so that all tensors together have exactly `total`.
        self._counts, so_far, given = {}, 0, 0
        for name, size in sizes.items():
            so_far += size
            count = round(total * so_far / sum(sizes.values())) - given
            given += count
            if count:
                self._counts[name] = count

    def __getitem__(self, name: str) -> Tensor:
        count, size = self._counts[name], self._sizes[name]
        if count == size:
            return torch.empty(size).int()  # without numbers, in a rehearsal
        return torch.arange(0, count * (size // count), size // count, dtype=torch.int32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


def spread_mask(model: nn.Module, *, density: float) -> ParamMask:
    """A mask that selects `density` of each tensor."""
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    return ParamMask(_Spread(shapes, density=density), shapes=shapes)  # type: ignore[arg-type]
