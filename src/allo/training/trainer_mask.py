"""The mask of a trainer: as given, from a file, or located by a criterion before training."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import sha256_json
from allo.ranks import rank
from allo.recipe.criteria import CRITERIA, Criterion
from allo.recipe.locate import Locate
from allo.recipe.own_code import own_file
from allo.training.given import default_arguments
from allo.training.locating import DEFAULTS, Search, record_of, searched
from allo.training.selected_trainer import DENSITY
from allo.training.trainer_rows import IdRows, kind_of
from allo.weights.allowed import allowed_in
from allo.weights.layout import Layout
from allo.weights.own_pieces import model_fingerprint, own_mask
from allo.weights.param_mask import ParamMask
from allo.weights.ranks import sum_over_ranks
from allo.weights.selection import num_to_select

MASK_FILE = "located-mask.safetensors"
# The settings of a trainer that the warm-up for its mask shares.
_SHARED = (
    *("use_cpu", "seed", "data_seed", "max_steps", "disable_tqdm", "log_level"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "activation_checkpointing"),
)


def trainer_mask(
    mask: ParamMask | float | str | Path,
    density: float | None,
    *,
    model: PreTrainedModel,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    rows: Callable[[], IdRows],
    max_tokens_per_batch: int | None,
) -> ParamMask:
    """Return the mask that a trainer was given: itself, read from a file, or located by a criterion on `rows`.

    A located mask is kept in `args.output_dir`, and read from there by a later run of the same rows, model and settings.
    Raises `UserError` for what is no mask, and for a density beside a mask that has its own.
    """
    if isinstance(mask, ParamMask):
        if density is not None:
            raise UserError(f"density: the mask has its own, {mask.density:.4g}. Remove `density`.")
        return mask
    if isinstance(mask, bool) or not isinstance(mask, int | float | str | Path):
        raise UserError(
            f"mask is a {type(mask).__name__}: give a ParamMask, a file, a criterion, or a density such as 0.1."
        )
    if isinstance(mask, Path) or (isinstance(mask, str) and not _is_criterion(mask)):
        if not Path(mask).expanduser().is_file():
            raise UserError(
                f"mask: {str(mask)!r} is neither a file nor a criterion; the criteria are {', '.join(CRITERIA)}."
            )
        return own_mask(Path(mask).expanduser(), model, density=density)
    if isinstance(mask, int | float) and density is not None:
        raise UserError(f"density: the mask is given as a density, {mask:g}. Remove `density`.")
    criterion = mask if isinstance(mask, str) else DEFAULTS.criterion
    wanted = float(mask) if not isinstance(mask, str) else DENSITY if density is None else density
    if wanted == 1.0:
        return Layout.of(model).full_mask()
    return _kept(
        record_of(criterion),
        criterion,
        wanted,
        model=model,
        args=args,
        tokenizer=tokenizer,
        rows=rows,
        locate=Locate(max_tokens_per_batch=max_tokens_per_batch),
    )


def _is_criterion(name: str) -> bool:
    return name in CRITERIA or own_file(name) is not None


def _kept(
    record: Criterion,
    criterion: str,
    density: float,
    *,
    model: PreTrainedModel,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    rows: Callable[[], IdRows],
    locate: Locate,
) -> ParamMask:
    """Return the mask of `args.output_dir` if it was located by the same; otherwise locate it, and keep it there.

    The first process locates, and the others read its file.
    """
    begun = time.monotonic()
    allowed = allowed_in(model, (), (), density=density)
    pairs = rows() if record.sees_pairs else []
    file, settings = Path(args.output_dir) / MASK_FILE, _warmup_settings(args)
    key = _key(record, density, pairs, locate.training.model_dump() | settings | {"beta": locate.beta}, model)
    known = file.is_file() and _located_by(file) == key
    sum_over_ranks(torch.zeros(1, device=args.device))  # all have looked before one writes
    if not known:
        if rank() == 0:
            again = (
                f"; {file} is damaged, or of another model, rows or settings, and is replaced"
                if file.is_file()
                else ""
            )
            say(
                f"mask: locating {density:.4g} of the weights by {record.name} before training, on {len(pairs):,} rows{again}"
            )
        with tempfile.TemporaryDirectory() as folder:
            arguments = default_arguments(folder, locate.training, save_strategy="no", **settings)
            layout = Layout.of(model).among(allowed.names)
            search = Search(layout, pairs, arguments, tokenizer, locate, args.seed)
            found = searched(search, record, criterion, allowed, density=density)
        if rank() == 0:
            replace(found, metadata={**found.metadata, "located_by": key}).save(file)
        sum_over_ranks(torch.zeros(1, device=args.device))
    mask = own_mask(file, model)
    if rank() == 0:
        by = f"{record.name} on {len(pairs):,} {kind_of(pairs)}" if pairs else record.name
        how = "located before, by" if known else "located by"
        took = "" if known else f" in {time.monotonic() - begun:.1f} s"
        say(
            f"mask: {num_to_select(density, mask.num_weights):,} of {mask.num_weights:,} weights (density {density:g}), {how} {by}{took}: {file}"
        )
    return mask


def _located_by(file: Path) -> str | None:
    """Return the key of a kept mask; None for a damaged file, which is then replaced."""
    try:
        return ParamMask.load(file).metadata.get("located_by")
    except UserError as error:
        say(f"mask: the kept one cannot be read and is located again: {error}")
        return None


def _warmup_settings(args: TrainingArguments) -> dict[str, Any]:
    """Return a trainer's settings that its warm-up shares: its batch, at most its steps and at most one epoch."""
    shared = {name: getattr(args, name) for name in _SHARED}
    return shared | {"num_train_epochs": min(1.0, args.num_train_epochs)}


def _key(
    record: Criterion, density: float, rows: IdRows, settings: Mapping[str, Any], model: PreTrainedModel
) -> str:
    """Return a key of all that a located mask depends on."""
    own = own_file(record.function)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "label")
    ids = [[row[column] for column in columns if column in row] for row in rows]
    what = [record.name, own.read_text("utf-8") if own else "", density, ids, sorted(settings.items())]
    return f"{sha256_json(what)} {model_fingerprint(model)}"
