"""The tokens of bad completions that count in learning (method.md 1.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from allo.losses import token_losses as losses
from allo.models.collate import Batch
from allo.recipe.losses import Filter
from allo.weights.selection import stable_hash


def with_draws(
    batch: Batch, rows: Sequence[Mapping[str, Any]], *, filter: Filter, step: int, seed: int
) -> Batch:
    """Add what a random filter reads: a number for each token, `draws` [rows, L] fp32, by the step and the row alone."""
    if filter != "random":
        return batch
    targets = batch["targets"]
    places = torch.arange(targets.shape[1])
    found = [stable_hash(f"{step}:{row['number']}", places, seed=seed) for row in rows]
    # fp32 holds 24 bits.
    return batch | {"draws": (torch.stack(found) >> 8).float().to(targets.device)}


def kept_tokens(
    logratios: Tensor, completion_mask: Tensor, batch: Batch, *, keep: float, filter: Filter
) -> Tensor:
    """Return the tokens that `keep` and `filter` leave of each completion: fp32 and bool [B, L] -> bool [B, L]."""
    order = batch["draws"] if filter == "random" else logratios
    return losses.keep_lowest(-order if filter == "highest" else order, completion_mask, keep=keep)
