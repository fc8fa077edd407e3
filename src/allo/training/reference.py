"""The reference's log-probs of every training token, computed once and kept in a file."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo.console import track
from allo.models.collate import Batch
from allo.models.policy import per_token_logps
from allo.ranks import rank
from allo.training.checkpointing import keep_tensors, kept_tensors
from allo.training.micro_batches import idle_share, own_share
from allo.weights.fingerprints import combine, digests
from allo.weights.ranks import sum_over_ranks
from allo.weights.shards import Ranks, named_rows

Row = Mapping[str, Any]
_IDS = "_ids"
_LOGPS = "_ref_logps"


def add_reference(
    model: PreTrainedModel,
    rows: Sequence[dict[str, Any]],
    batches: Sequence[Sequence[Row]],
    collate: Callable[[Sequence[Row]], Batch],
    file: Path,
) -> None:
    """Add the current model's log-prob of each completion token to every row, as `<side>_ref_logps` (fp32).

    `batches` holds every row once, batched as in training, so that rounding is the same. A row's `number` is its index
    in `rows`. Each rank computes its share. If `file` holds the result for these rows and weights, it is read;
    otherwise it is written.
    """
    key = _key(model, rows, batches, collate)
    kept = kept_tensors(file, key=key)
    logps = None if kept is None else kept["logps"]
    missing = sum_over_ranks(torch.tensor(float(logps is None), device=model.device))
    if missing or logps is None:
        logps = _compute(model, rows, batches, collate)
        if rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            keep_tensors(file, {"logps": logps}, key=key)
    start = 0
    for row in rows:
        for side in _sides(row):
            end = start + len(row[side + _IDS])
            row[side + _LOGPS] = logps[start:end]
            start = end


@torch.no_grad()
def _compute(
    model: PreTrainedModel,
    rows: Sequence[Row],
    batches: Sequence[Sequence[Row]],
    collate: Callable[[Sequence[Row]], Batch],
) -> Tensor:
    """Compute the log-probs of all completions' tokens, concatenated, [tokens] fp32 on the CPU."""
    places: dict[tuple[int, str], int] = {}
    total = 0
    for row in rows:
        for side in _sides(row):
            places[row["number"], side] = total
            total += len(row[side + _IDS])
    found = torch.zeros(total, device=model.device)
    own = list(
        own_share(batches, whole=True)
    )  # the same batches, and so the same numbers, on any number of ranks
    for part in track(own, "log-probs of the reference", total=len(own)):
        batch = {name: tensor.to(model.device) for name, tensor in collate(part).items()}
        completions = [(row, side) for side in _sides(part[0]) for row in part]
        for (row, side), logps in zip(completions, per_token_logps(model, batch), strict=True):
            start, length = places[row["number"], side], len(row[side + _IDS])
            found[start : start + length] = logps[:length]
    for part in idle_share(batches, whole=True) if Ranks.of(model).num > 1 else []:
        per_token_logps(model, {name: tensor.to(model.device) for name, tensor in collate(part).items()})
    return sum_over_ranks(found).cpu()


def _sides(row: Row) -> list[str]:
    """Return the row's completions, in the collator's order."""
    return [side for side in ("chosen", "rejected", "completion") if side + _IDS in row]


def _key(
    model: PreTrainedModel,
    rows: Sequence[Row],
    batches: Sequence[Sequence[Row]],
    collate: Callable[[Sequence[Row]], Batch],
) -> str:
    """Return a key of the rows, the weights and the batches: in bf16, rounding depends on the batch."""
    ids = [[row["prompt" + _IDS], *(row[side + _IDS] for side in _sides(row))] for row in rows]
    batched = [repr(collate), [[row["number"] for row in part] for part in batches]]
    data = hashlib.sha256(json.dumps([ids, batched]).encode()).hexdigest()
    return f"{data} {Ranks.of(model).fingerprint(combine(digests(named_rows(model))))}"
