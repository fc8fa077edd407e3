"""The memory of the stages that train, from a rehearsal of the trainer's own steps."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allo.core.param_mask import ParamMask
from allo.core.rehearsal import Rehearsal
from allo.core.selection import num_to_select
from allo.hf.rehearsal import one_word_tokenizer, rehearsed_model, words
from allo.hf.selected_trainer import SelectedTrainer
from allo.hf.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.hf.training import train, training_arguments
from allo.plan.lengths import training_lengths
from allo.plan.memory import StagePlan
from allo.recipe import Recipe


def plan_training(recipe: Recipe, stage: str) -> StagePlan:
    """The peak of two micro-batches of rows as long as they can be, after a first optimizer step."""
    with tempfile.TemporaryDirectory() as folder, Rehearsal() as rehearsal:
        model = rehearsed_model(recipe)
        rehearsal.hold(model.state_dict(keep_vars=True).values(), "weights")
        trainer = _trainer(recipe, stage, model, Path(folder))
        _name_kinds(rehearsal, trainer)
        _take_first_step(trainer)
        rehearsal.start_again()
        train(trainer)
    return StagePlan(stage, _load(recipe, stage), dict(rehearsal.at_peak))


def _trainer(recipe: Recipe, stage: str, model: Any, folder: Path) -> SelectedTrainer:
    """The stage's trainer, for one step."""
    block = getattr(recipe, stage)
    settings = block.training.model_dump()
    one_step = {
        "max_steps": 1,
        "gradient_accumulation_steps": min(2, block.training.gradient_accumulation_steps),
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
    }
    arguments = training_arguments(
        settings | one_step,
        folder=folder,
        seed=recipe.seed,
        device=torch.device("cpu"),
        key=f"{stage}.training",
    )
    num_rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    common: dict[str, Any] = {
        "mask": spread_mask(model, density=_density(recipe, stage)),
        "max_length": recipe.max_length,
    }
    lengths = training_lengths(recipe)
    prompt, completion = words(lengths.prompt), words(lengths.completion - 1)  # EOS comes on top
    single = [{"prompt": prompt, "completion": completion}] * num_rows
    pair = [{"prompt": prompt, "chosen": completion, "rejected": completion}] * num_rows
    tokenizer = one_word_tokenizer()
    if stage == "sft":
        return SftTrainer(model, arguments, single, tokenizer, **common)
    if stage == "forget":
        return ForgetTrainer(model, arguments, single, tokenizer, beta=block.beta, **common)
    return ImproveTrainer(model, arguments, pair, tokenizer, beta=block.beta, **common)


def _density(recipe: Recipe, stage: str) -> float:
    return 1.0 if stage in ("sft", "locate") else getattr(recipe, stage).density


def _take_first_step(trainer: SelectedTrainer) -> None:
    """Moments are there from the second step on."""
    trainer.selected.gradients()
    optimizer = trainer.create_optimizer()
    optimizer.step()
    optimizer.zero_grad()


def _name_kinds(rehearsal: Rehearsal, trainer: SelectedTrainer) -> None:
    """By what they look like: new tensors of the shape of a weight are its gradient, and so on."""
    selected, model = trainer.selected, trainer.model
    weights = {param.shape for param in model.parameters()}
    flats = {flat.shape for flat in selected.parameters()}
    slots = {bits.shape for bits in selected.slot("ref").values()} if trainer.slots else set()
    vocabulary = model.get_output_embeddings().weight.shape[0]

    def kind(tensor: Tensor) -> str:
        if tensor.shape in weights:
            return "gradient"
        if tensor.shape in flats:
            return "state"
        if tensor.shape in slots and tensor.dtype == model.dtype:
            return "slots"
        return "log-probs" if tensor.shape[-1:] == (vocabulary,) else "activations"

    rehearsal.kind = kind


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


def _load(recipe: Recipe, stage: str) -> str:
    lengths = training_lengths(recipe)
    size = getattr(recipe, stage).training.per_device_train_batch_size
    what = "pairs" if stage in ("locate", "improve") else "rows"
    return f"{size} {what} of {lengths.prompt} + {lengths.completion} tokens"
