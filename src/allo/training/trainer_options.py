"""The keywords that every trainer on selected weights takes."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Required, TypedDict

import torch
from transformers import TrainerCallback

from allo.weights.param_mask import ParamMask


class Options(TypedDict, total=False):
    """Keywords of `SelectedTrainer`."""

    mask: Required[ParamMask]
    eval_dataset: Iterable[Mapping[str, Any]] | None
    max_length: int | None
    max_tokens_per_batch: int | None
    reference: Literal["swap", "precomputed"] | None
    gradient_dtype: torch.dtype
    lean: bool
    records: bool
    callbacks: list[TrainerCallback] | None
