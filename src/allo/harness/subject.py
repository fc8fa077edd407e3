"""The model that a harness measures: a folder's, a base with its delta, or a run's; its weights identified."""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch

from allo.delta import Delta, apply_to_model, fetch, read_delta
from allo.delta.patch import check_bits, check_layout
from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.rounds import trained
from allo.models.load import MODEL_FILES, Model, Tokenizer, load_model, load_tokenizer, locate_checkpoint
from allo.models.start import DTYPES, read_start
from allo.recipe import Recipe
from allo.stages.evaluate import LABELS
from allo.training.result import DELTA
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import combine, digests
from allo.weights.layout import Layout, stored_tensors


@dataclass(frozen=True)
class Source:
    """A model's weights: a folder, hub id or GGUF file, optionally with a delta to it.

    `name` is its key in the block of results, `label` its name for readers.
    """

    name: str
    label: str
    base: str
    delta: Path | None = None
    pad_token: str | None = None


@dataclass(frozen=True)
class Subject:
    """A model in memory; `fingerprint` identifies its weights as stored, whatever dtype it runs in."""

    model: Model
    tokenizer: Tokenizer
    fingerprint: str


def of_model(base: str, delta: str | None, *, pad_token: str | None) -> Source:
    """Return a base, alone or with a delta (a file, or hf://OWNER/NAME on the hub)."""
    name = Path(base).name
    if delta is None:
        return Source(name, name, base, None, pad_token)
    file = fetch(delta)
    place = Path(delta)
    label = f"{name} + {place.parent.name}/{place.name}" if place.name == DELTA else f"{name} + {place.name}"
    return Source(label, label, base, file, pad_token)


def of_run(recipe: Recipe, run: RunFolder, *, start: bool) -> list[Source]:
    """Return a run's result: its starting model with the last training stage's delta; `start` adds that model before.

    Raises `UserError` if the run has not trained yet.
    """
    delta = trained(recipe, run) / DELTA
    if not delta.is_file():
        raise UserError(f"{delta}: not there yet; finish the run first, with `allo run`.")
    base = read_start(run).model
    aligned = Source("aligned", LABELS["aligned"], base, delta, recipe.pad_token)
    before = Source("start", LABELS["start"], base, None, recipe.pad_token)
    return [before, aligned] if start else [aligned]


def load(source: Source, *, dtype: str | None, device: str, trust_remote_code: bool) -> Subject:
    """Load the model, apply its delta in the stored dtype, then convert it to `dtype` (None: as stored).

    Raises `UserError` for an unreadable checkpoint, and for a delta of another base.
    """
    folder, gguf = locate_checkpoint(source.base, MODEL_FILES)
    change = None if source.delta is None else read_delta(source.delta)
    if change is not None and gguf is not None:
        raise UserError(f"{source.base}: a delta applies to a checkpoint folder, not to a GGUF file.")
    if change is not None:
        _check_base(change, folder, source)
    stored = DTYPES["bfloat16"] if gguf else _stored_dtype(folder)
    model = load_model(source.base, dtype=stored, device=device, trust_remote_code=trust_remote_code)
    if change is not None:
        apply_to_model(model, change)
    fingerprint = combine(_digests(model, None if gguf else Checkpoint.open(folder)))
    tokenizer = load_tokenizer(source.base, pad_token=source.pad_token, trust_remote_code=trust_remote_code)
    return Subject(model if dtype is None else model.to(DTYPES[dtype]), tokenizer, fingerprint)


def _digests(model: Model, base: Checkpoint | None) -> dict[str, str]:
    """Return the digests of the folder's tensors with the model's values, in the folder's dtypes."""
    stored = base.stored if base else {}
    live = (
        (name, each.to(stored[name].dtype) if name in stored else each)
        for name, each in stored_tensors(model)
    )
    found = digests(live)
    found |= {name: found[first] for name, first in Layout.whole(model).copies(stored.keys()).items()}
    return found | {name: base.digest(name) for name in stored if base and name not in found}


def _check_base(change: Delta, folder: Path, source: Source) -> None:
    """Raise `UserError` if the folder's weights are not, bit for bit, the delta's base."""
    base = Checkpoint.open(folder)
    check_layout(change, base, what=f"the delta {source.delta}")
    for name in base.stored:
        where = f"{source.base} is not the base that {source.delta} was made from"
        check_bits(name, base.digest(name), change, where=where)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the weights' dtype; of several, one that rounds none; float32 if there are no weights."""
    dtypes = [
        entry.dtype for entry in Checkpoint.open(folder).stored.values() if entry.dtype.is_floating_point
    ]
    return reduce(torch.promote_types, dtypes or [torch.float32])
