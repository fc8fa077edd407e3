"""The memory of the stages that train, from a rehearsal of the trainer's own steps."""

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allo.console import hushed
from allo.models.collate import FeedbackCollator, PairCollator
from allo.models.load import Model
from allo.models.rehearsal import one_word_tokenizer, other_word, rehearsed_model, words
from allo.models.rows import counted_completions, counted_pairs
from allo.models.start import allowed_in_start
from allo.plan.lengths import training_lengths
from allo.plan.live_bytes import LiveBytes
from allo.plan.memory import StagePlan, Step
from allo.plan.rehearsal import Rehearsal
from allo.recipe import Locate, Recipe
from allo.recipe.criteria import Needs, criterion_of
from allo.recipe.losses import ANSWER_LOSSES
from allo.training.arguments import Arguments, stage_arguments
from allo.training.dpo_passes import DpoPasses
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.locating import LABELLED_LOSS
from allo.training.run import train
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.weights.allowed import Shapes, num_entries
from allo.weights.fused_warmup import FusedWarmup
from allo.weights.host_sums import HostSums
from allo.weights.layout import shapes_of
from allo.weights.lean_adamw import LeanAdamW, Walk
from allo.weights.param_mask import ParamMask
from allo.weights.places import has_numbers
from allo.weights.selection import num_to_select

_INDEX_BYTES = 4  # of a mask's entry in host memory
_SENT = 4  # bytes of an entry of a summed gradient; a lean one has fewer


def plan_training(recipe: Recipe, stage: str) -> StagePlan:
    """Plan the peak of an optimizer step after the first, on one micro-batch of the longest rows."""
    if stage == "locate" and recipe.locate:
        needs = criterion_of(recipe.locate.criterion).needs
        if needs != "warm-up":
            return _plan_passes(recipe, recipe.locate, needs)
    among = _may_train(recipe, stage)
    with tempfile.TemporaryDirectory() as folder, Rehearsal() as rehearsal:
        trainer = take_a_step(rehearsed_model(recipe), recipe, stage, rehearsal, Path(folder), among=among)
    lengths = training_lengths(recipe)
    rows = "pairs" if isinstance(trainer, ImproveTrainer) else "rows"
    taken = dict(rehearsal.at_peak)
    host = taken.pop("host", 0)
    moments = {
        key: {kind: number for kind, number in at.items() if kind != "host"}
        for key, at in rehearsal.moments.items()
    }
    masks = _INDEX_BYTES * trainer.selected.num_selected
    row, *_ = trainer.train_dataset
    rows_a_step = _rows_a_step(recipe, stage)
    step = Step(
        micro_batches=-(-rows_a_step // trainer.rows_a_step),
        rows=trainer.rows_a_step,
        row_tokens=trainer.data_collator.num_tokens([row]),
        length=lengths.prompt + lengths.completion,
        references=int(trainer.needs_reference and trainer.reference == "swap"),
        recomputes=bool(trainer.args.activation_checkpointing),
        selected=trainer.selected.num_selected,
        trained=sum(math.prod(trainer.mask.shapes[name]) for name in trainer.mask.indices),
        sent_copy=_SENT * trainer.selected.num_selected if trainer.lean else 0,
    )
    return StagePlan(
        stage,
        f"{trainer.rows_a_step} {rows} of {lengths.prompt} + {lengths.completion} tokens",
        taken,
        host=masks + host,
        moments=moments,
        step=step,
    )


def _rows_a_step(recipe: Recipe, stage: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(recipe, stage, Path(folder))
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps


def _may_train(recipe: Recipe, stage: str) -> Collection[str] | None:
    """Return the names in memory of the tensors that a stage may train; None if all."""
    allowed = allowed_in_start(recipe) if stage in ("locate", "forget", "improve") else None
    return None if allowed is None else allowed.live


def _plan_passes(recipe: Recipe, locate: Locate, needs: Needs) -> StagePlan:
    """Plan locating without an optimizer: the peak of one micro-batch, and the bytes kept on the host."""
    lengths, among = training_lengths(recipe), _may_train(recipe, "locate")
    with tempfile.TemporaryDirectory() as folder, Rehearsal() as rehearsal:
        model = rehearsed_model(recipe)
        rehearsal.hold([*model.parameters(), *model.buffers()], "weights")
        if needs in ("weights", "layers", "hashes"):
            return StagePlan("locate", "no data", dict(rehearsal.at_peak))
        shapes = {name: shape for name, shape in shapes_of(model).items() if among is None or name in among}
        host, state = _kept(model, locate, needs, shapes)
        if recipe.reads_warmup:  # what was warmed up in fp32, while it is written for the scorer
            host += 4 * num_entries(shapes)
        arguments = _arguments(recipe, "locate", Path(folder))
        labelled = recipe.data.feedback is not None
        counted = counted_completions if labelled else counted_pairs
        row = (_labelled if labelled else _pair)(*_texts(recipe))
        rows, _ = counted(one_word_tokenizer(), [row], max_length=recipe.max_length)
        if needs != "squared gradients":
            size, most = arguments.per_device_train_batch_size, locate.max_tokens_per_batch
            if most is not None:
                collate = FeedbackCollator(0) if labelled else PairCollator(0, shared_prefix=True)
                size = max(1, most // collate.num_tokens(rows))
            rows = _copies(rows[0], size)
        passes = DpoPasses(
            model,
            rows,
            arguments,
            beta=locate.beta,
            pad_id=one_word_tokenizer().pad_token_id,
            max_tokens_per_batch=locate.max_tokens_per_batch,
            among=among,
        )
        rehearsal.kind = _kinds(model)
        rehearsal.start_again()
        passes.take_start_gradients(lambda *_: None)
    return StagePlan(
        "locate",
        f"{len(rows)} {'completions' if labelled else 'pairs'} of {lengths.prompt} + {lengths.completion} tokens",
        rehearsal.at_peak | {"state": state},
        host=host,
        moments={key: at | {"state": state} for key, at in rehearsal.moments.items()},
    )


def _kept(model: Model, locate: Locate, needs: Needs, shapes: Shapes) -> tuple[int, int]:
    """Return the bytes that a criterion keeps between micro-batches, on the host and on the device."""
    if needs == "fused warm-up":
        warmup = FusedWarmup(model, among=shapes)
        return warmup.host_bytes, warmup.device_bytes
    return HostSums(shapes, dtype=getattr(torch, locate.accumulate), seed=0).num_bytes, 0


def take_a_step(
    model: Model,
    recipe: Recipe,
    stage: str,
    live: LiveBytes,
    folder: Path,
    *,
    among: Collection[str] | None = None,
) -> SelectedTrainer:
    """Train `model` for one step under `live`, counting its weights, and return the trainer.

    `among` names the tensors that may be trained, if not all.
    """
    live.hold([*model.parameters(), *model.buffers()], "weights")
    live.kind = lambda tensor: "state"
    trainer = _trainer(recipe, stage, model, folder, among)
    # Gradients and moments exist from the second step on.
    trainer.selected.gradients()
    optimizer = trainer.create_optimizer()
    if isinstance(optimizer, LeanAdamW) and isinstance(live, Rehearsal):
        optimizer.walk = _a_chunk_of_each_length(optimizer.walk)
    optimizer.step()
    _name_kinds(live, trainer)
    _fill_a_micro_batch(trainer)
    live.start_again()
    with hushed():
        train(trainer)
    return trainer


def _a_chunk_of_each_length(walk: Walk) -> Walk:
    """Return a walk that yields the first chunk of each length: a further one takes the same memory again."""

    def shorter(flat: nn.Parameter) -> Iterator[tuple[slice, Tensor]]:
        seen = set()
        for entries, master in walk(flat):
            if (length := entries.stop - entries.start) not in seen:
                seen.add(length)
                yield entries, master

    return shorter


def _trainer(
    recipe: Recipe, stage: str, model: Model, folder: Path, among: Collection[str] | None
) -> SelectedTrainer:
    """Return the stage's trainer for one step, with one of its longest rows."""
    block = getattr(recipe, stage)
    arguments = _arguments(recipe, stage, folder)
    prompt, completion = _texts(recipe)
    mask = spread_mask(model, density=getattr(block, "density", 1.0), among=among)
    given: dict[str, Any] = {"mask": mask, "max_length": recipe.max_length}
    for option in ("beta", "max_tokens_per_batch", "reference", "shared_prefix", "lean"):
        if hasattr(block, option):
            given[option] = getattr(block, option)
    row: dict[str, Any] = _pair(prompt, completion)
    kind: Any = ImproveTrainer
    labelled = recipe.data.feedback is not None
    if labelled and stage == "locate":
        kind, row = FeedbackTrainer, _labelled(prompt, completion)
        given |= {"loss": LABELLED_LOSS, "keep": 1.0}
    elif stage == "improve" and block.loss not in ANSWER_LOSSES:
        given |= {"loss": block.loss, "loss_settings": block.loss_settings, "keep": block.keep}
        given |= {"filter": block.filter}
        if labelled:
            kind, row = FeedbackTrainer, _labelled(prompt, completion)
            del given["shared_prefix"]
        else:
            given["anchor"] = block.anchor
    elif stage == "forget":
        kind, given["loss"] = ForgetTrainer, block.loss
        row = {"prompt": prompt, "completion": completion}
    elif stage != "locate":
        kind = SftTrainer
        row = {"prompt": prompt, "completion": completion}
        given = {name: given[name] for name in given if name not in ("beta", "shared_prefix", "reference")}
    trainer: SelectedTrainer = kind(model, arguments, [row], one_word_tokenizer(), **given)
    return trainer


def _arguments(recipe: Recipe, stage: str, folder: Path) -> Arguments:
    """Return the stage's training arguments for one step."""
    one_step = {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    return stage_arguments(recipe, stage, folder=folder, device=torch.device("cpu"), more=one_step)


def _texts(recipe: Recipe) -> tuple[str, str]:
    """Return the longest prompt and completion."""
    lengths = training_lengths(recipe)
    return words(lengths.prompt), words(lengths.completion - 1)  # EOS comes on top


def _pair(prompt: str, completion: str) -> dict[str, str]:
    """Return a pair with two answers of one length; equal answers would be dropped."""
    return {"prompt": prompt, "chosen": completion, "rejected": other_word(completion)}


def _labelled(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": True}


def _copies(row: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """Return copies of a row, numbered, one of them a token shorter: with padding, attention takes a mask."""
    rows = [row | {"number": number} for number in range(size)]
    if size > 1:
        rows[-1]["prompt_ids"] = row["prompt_ids"][1:]
    return rows


def _fill_a_micro_batch(trainer: SelectedTrainer) -> None:
    """Give the trainer as many copies of its row as a micro-batch holds."""
    (row,) = trainer.train_dataset
    if trainer.reference == "precomputed":  # not computed in a rehearsal, where it would have no numbers
        row |= {
            name.replace("_ids", "_ref_logps"): [0.0] * len(ids)
            for name, ids in row.items()
            if name.endswith("_ids") and name != "prompt_ids"
        }
    micro_batch, *_ = trainer._micro_batches([row] * trainer.rows_a_step)
    trainer.train_dataset, trainer.rows_a_step = _copies(row, len(micro_batch)), len(micro_batch)


def _name_kinds(live: LiveBytes, trainer: SelectedTrainer) -> None:
    """Name tensors by their shapes: a new tensor with a weight's shape is its gradient, and so on."""
    selected, model = trainer.selected, trainer.model
    other = _kinds(model)
    flats = {flat.shape for flat in selected.parameters()}
    has_slot = trainer.needs_reference and trainer.reference == "swap"
    slot = list(selected.slot("ref").values()) if has_slot else []
    live.hold(slot, "host" if trainer.lean else "slots")
    slots = set() if trainer.lean else {bits.shape for bits in slot}

    def kind(tensor: Tensor) -> str:
        if tensor.shape in flats:
            return "state"
        if tensor.shape in slots and tensor.dtype == model.dtype:
            return "slots"
        return other(tensor)

    live.kind = kind


def _kinds(model: Model) -> Callable[[Tensor], str]:
    """Return a function that names a step's tensors, apart from its state, by shape."""
    weights = {param.shape for param in model.parameters()}
    vocabulary = model.get_output_embeddings().weight.shape[0]

    def kind(tensor: Tensor) -> str:
        if tensor.shape in weights:
            return "gradient"
        return "log-probs" if tensor.shape[-1:] == (vocabulary,) else "activations"

    return kind


class _Spread(Mapping[str, Tensor]):
    """Evenly spread indices, made on access: together they would take 4 bytes an entry."""

    def __init__(self, sizes: Mapping[str, int], *, total: int) -> None:
        self._sizes = sizes
        # Sums are rounded, so that all tensors together have exactly `total`.
        self._counts, so_far, given = {}, 0, 0
        for name, size in sizes.items():
            so_far += size
            count = round(total * so_far / sum(sizes.values())) - given
            given += count
            if count:
                self._counts[name] = count

    def __getitem__(self, name: str) -> Tensor:
        count, size = self._counts[name], self._sizes[name]
        without_numbers = torch.empty(count).int()  # in a rehearsal
        if not has_numbers(without_numbers):
            return without_numbers
        return torch.arange(0, count * (size // count), size // count, dtype=torch.int32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


def spread_mask(model: nn.Module, *, density: float, among: Collection[str] | None = None) -> ParamMask:
    """Return a mask that selects `density` of all weights, an equal share of each tensor `among` these.

    All of their weights, if they are fewer.
    """
    shapes = shapes_of(model)
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if among is None or name in among}
    total = min(num_to_select(density, num_entries(shapes)), sum(sizes.values()))
    return ParamMask(_Spread(sizes, total=total), shapes=shapes)
