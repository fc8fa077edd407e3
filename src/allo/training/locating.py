"""The short training of all weights that finds those that matter, for the stage `locate` and in memory."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from allo.losses.feedback_losses import classified
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.run import train_from
from allo.training.selected_trainer import Row, SelectedTrainer
from allo.training.trainer import ImproveTrainer
from allo.training.trainer_options import Options
from allo.weights import importance
from allo.weights.allowed import allowed_in
from allo.weights.fingerprints import fingerprint_tensors
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout, stored_tensors
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights

Statistics = Callable[[], Iterable[tuple[str, Tensor, Tensor]]]
"""Yields a tensor's name, its weights and their statistic, flat, tensor by tensor and piece by piece."""


def locate(
    model: PreTrainedModel,
    args: TrainingArguments,
    train_dataset: Iterable[Row],
    processing_class: PreTrainedTokenizerBase,
    *,
    density: float,
    criterion: importance.Scoring = importance.delta,
    beta: float = 0.1,
    max_length: int = 1200,
    max_tokens_per_batch: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> ParamMask:
    """Return the mask of the weights that a short DPO run of all weights changes most (method.md 1.1).

    This is the recipe's criterion `warmup`. The model gets its own bits back afterwards, and its dropout stays off. All
    weights train with fp32 masters, so the run takes some 20 bytes a weight. `args` are those of the short run; its
    checkpoints lie in `args.output_dir`, if it saves any.

    Args:
        train_dataset: rows with `prompt`, `chosen` and `rejected`, as of `ImproveTrainer`.
        density: the share of all weights to select, above 0 and at most 1.
        criterion: from a tensor's weights before and after the run, fp32 of one shape, to scores >= 0, fp32 of that shape.
            The largest scores of all tensors together are selected.
        beta: DPO's.
        include, exclude: the tensors that the run trains and the mask selects from, as in a recipe's `locate`.

    Raises:
        UserError: a density that selects nothing, or more than may be selected; a pattern without a tensor; scores that are
            NaN or negative; or as `ImproveTrainer`.
    """
    allowed = allowed_in(model, include, exclude, density=density)  # refused before the run
    layout, shapes = Layout.of(model).among(allowed.names), allowed.shapes
    metadata = allowed.metadata | {
        "criterion": getattr(criterion, "__name__", "own"),
        "base_fingerprint": fingerprint_tensors(stored_tensors(model)),
    }
    was_training = model.training
    trainer = warmup_trainer(
        model,
        args,
        train_dataset,
        processing_class,
        among=layout.shapes,
        beta=beta,
        max_length=max_length,
        max_tokens_per_batch=max_tokens_per_batch,
    )
    try:
        train_from(trainer, None)
        scores = partial(_scores, changes_of(trainer, layout), criterion, shapes)
        top = ImportanceMap.top(scores, density=density, shapes=shapes, metadata=metadata)
    finally:
        _put_back(model, trainer.selected)
        model.train(was_training)
    return top.mask_at(density)


def _scores(
    changes: Statistics, criterion: importance.Scoring, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    for name, before, after in changes():
        yield name, criterion(before.view(shapes[name]).float(), after.view(shapes[name]))


def warmup_trainer(
    model: PreTrainedModel,
    args: TrainingArguments,
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    among: Collection[str],
    beta: float,
    max_length: int,
    max_tokens_per_batch: int | None,
    records: bool = False,
    labelled: bool = False,
) -> ImproveTrainer | FeedbackTrainer:
    """Return a trainer of the tensors `among` these by plain DPO, with fp32 masters: bf16 weights would swallow the small updates.

    If the rows are `labelled` completions, by BCO without its shift, which is DPO of single completions at the start.
    """
    options: Options = {
        "mask": ParamMask.full(Layout.of(model).shapes, among=among),
        "records": records,
        "reference": "swap",
        "max_length": max_length,
        "max_tokens_per_batch": max_tokens_per_batch,
    }
    if labelled:
        return FeedbackTrainer(model, args, rows, tokenizer, beta=beta, keep=1.0, loss=classified, **options)
    return ImproveTrainer(model, args, rows, tokenizer, beta=beta, keep=1.0, **options)


def changes_of(trainer: SelectedTrainer, layout: Layout) -> Statistics:
    """Return the weights on disk before training, with their bits, and after it in fp32, both flat."""
    before, after = trainer.selected.slot("ref"), trainer.selected.masters()
    return lambda: layout.beside(before, after)


@torch.no_grad()
def _put_back(model: PreTrainedModel, selected: SelectedWeights) -> None:
    """Give the model the bits that it had before the run, and its hooks and frozen tensors their former state."""
    start = selected.slot("ref")
    for name, param in model.named_parameters():
        if name in start:
            param.copy_(start[name].view(param.shape))
    selected.release()
