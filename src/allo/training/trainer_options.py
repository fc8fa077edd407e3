"""The keywords that every trainer on selected weights takes."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch
from transformers import EvalPrediction, TrainerCallback

from allo.errors import UserError
from allo.recipe.training import Group
from allo.training.given import Optimizers
from allo.weights.param_mask import ParamMask

Rows = Iterable[Mapping[str, Any]]
ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


def known_group(group: Group) -> Group:
    """Return `group`. Raises `UserError` for another word."""
    if group not in get_args(Group):
        raise UserError(f"group: {group!r} is unknown: give {' or '.join(map(repr, get_args(Group)))}.")
    return group


class Unsupported(TypedDict, total=False):
    """Keywords of other trainers; see `given.UNSUPPORTED`."""

    ref_model: Any
    peft_config: Any
    data_collator: Any
    quantization_config: Any
    model_init: Any
    compute_loss_func: Any
    optimizer_cls_and_kwargs: Any
    preprocess_logits_for_metrics: Any
    tokenizer: Any


class Options(Unsupported, total=False):
    """Keywords of `SelectedTrainer`."""

    mask: ParamMask | float | str | Path
    density: float | None
    eval_dataset: Rows | Mapping[str, Rows] | None
    max_length: int | None
    max_tokens_per_batch: int | None
    group: Group
    reference: Literal["swap", "precomputed"] | None
    gradient_dtype: torch.dtype
    lean: bool
    records: bool
    callbacks: list[TrainerCallback] | None
    compute_metrics: ComputeMetrics | None
    optimizers: Optimizers
