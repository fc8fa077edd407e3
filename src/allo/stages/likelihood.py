"""The change in likelihood of the answers that alignment was shown."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from allo.console import track
from allo.files.records import Pair
from allo.models.collate import PairCollator
from allo.models.load import Model, Tokenizer
from allo.models.policy import per_token_logps
from allo.models.rows import counted_pairs

BATCH = 32  # pairs


@torch.inference_mode()
def likelihood(
    pairs: Sequence[Pair],
    model: Model,
    tokenizer: Tokenizer,
    at_start: Callable[[], AbstractContextManager[None]],
    *,
    max_length: int,
) -> dict[str, Any]:
    """Return the mean log-ratio of a token to the starting model, in nats, of chosen and of rejected answers.

    `at_start` turns `model` into the starting model for a block.
    """
    rows, _ = counted_pairs(tokenizer, map(vars, pairs), max_length=max_length)
    collate = PairCollator(tokenizer.pad_token_id, shared_prefix=False)
    sums = torch.zeros(2, dtype=torch.float64)
    counts = torch.zeros(2)
    starts = range(0, len(rows), BATCH)
    for start in track(starts, "likelihood", total=len(starts)):
        batch = {key: value.to(model.device) for key, value in collate(rows[start : start + BATCH]).items()}
        aligned = per_token_logps(model, batch)
        with at_start():
            logratios = aligned - per_token_logps(model, batch)
        sums += torch.stack([side.double().sum().cpu() for side in logratios.chunk(2)])
        counts += torch.stack([side.sum().cpu() for side in batch["completion_mask"].chunk(2)])
    chosen, rejected = (sums / counts).tolist()
    return {"chosen": chosen, "rejected": rejected, "num_pairs": len(rows)}
