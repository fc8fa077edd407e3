"""Training of a rewriter: supervised fine-tuning on rewrites, with loss on the rewrite's tokens only."""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from allo.errors import UserError
from allo.files.artifacts import sha256_file, sha256_json, write_atomic, write_json, write_jsonl
from allo.models.load import Model, Tokenizer, load_model, load_tokenizer
from allo.models.model_checks import num_positions
from allo.models.start import DTYPES, save_whole
from allo.models.tokenization import bare_ids, prompt_ids
from allo.models.tokenizer_checks import check_ids_fit
from allo.recipe.errors import explain
from allo.recipe.numbers import Count, CountOrZero
from allo.recipe.text import override
from allo.recipe.training import SftTraining
from allo.rewriter.row import RewriteRow, read_rewrites
from allo.tokens.rewrite_wording import WORDING, ask_for_rewrite
from allo.tokens.rewriter import RECORD, SCHEMA, tokenizer_hash
from allo.training.arguments import training_arguments
from allo.training.run import train
from allo.training.trainer import SftTrainer
from allo.weights.layout import Layout


class RewriterSettings(BaseModel):
    """Settings of a rewriter's training: the relevant keys of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_length: Count = 2048
    """Tokens of a row, prompt and rewrite together; more than max_length of the recipe that it will score for."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    seed: CountOrZero = 0
    pad_token: str | None = None
    trust_remote_code: bool = False
    training: SftTraining = SftTraining()


def read_settings(overrides: list[str]) -> RewriterSettings:
    """Return settings from `dotted.key=value` strings. Raises `UserError` for anything that is not allowed."""
    fields: dict[str, Any] = {}
    for text in overrides:
        override(fields, text)
    try:
        return RewriterSettings.model_validate(fields)
    except ValidationError as error:
        raise UserError(
            "\n".join(explain(RewriterSettings, Path("--set"), None, problem) for problem in error.errors())
        ) from error


def train_rewriter(data: Path, model: str, out: Path, settings: RewriterSettings) -> dict[str, Any]:
    """Write the rewriter to the folder `out`: safetensors, the tokenizer, its record and metrics.

    A killed run resumes from its last checkpoint in `<out>.training`. Raises `UserError` for bad rows or settings,
    and if `out` already holds something.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} already exists: give another name or remove it.")
    rows = read_rewrites(data)
    work = _work_folder(out, [sha256_file(data), _base(model), settings.model_dump(mode="json")])
    policy = load_model(
        model,
        dtype=DTYPES[settings.dtype],
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )
    tokenizer = load_tokenizer(
        model, pad_token=settings.pad_token, trust_remote_code=settings.trust_remote_code
    )
    check_ids_fit(tokenizer, policy.config, ref=model)
    _make_room(policy, settings.max_length)
    trainer = trainer_of(policy, tokenizer, rows, settings, folder=work)
    metrics = train(trainer)
    trainer.selected.release()
    counts = {
        "rows": len(trainer.train_dataset),
        "dropped": trainer.num_dropped,
        "cut": _num_cut(tokenizer, rows, settings.max_length),
        "steps": trainer.state.global_step,
        "loss": metrics[-1]["loss"],
    }
    tokenizer.model_max_length = max(tokenizer.model_max_length, settings.max_length)
    save_whole(policy, tokenizer, work / "model")
    write_jsonl(work / "model" / "metrics.jsonl", metrics)
    record = {
        "schema": SCHEMA,
        "wording": WORDING,
        "tokenizer": tokenizer_hash(tokenizer),
        "data": sha256_file(data),
        "model": model,
        **settings.model_dump(mode="json"),
        "counts": counts,
    }
    write_json(work / "model" / RECORD, record)
    os.replace(work / "model", out)
    shutil.rmtree(work)
    return counts


def trainer_of(
    model: Model, tokenizer: Tokenizer, rows: list[RewriteRow], settings: RewriterSettings, *, folder: Path
) -> SftTrainer:
    """Return a trainer of every weight, with fp32 masters."""
    arguments = training_arguments(
        settings.training.model_dump(),
        folder=folder,
        seed=settings.seed,
        device=model.device,
        key="training",
    )
    return SftTrainer(
        model,
        arguments,
        [{"prompt": _asked(row), "completion": row.rewrite, "template": row.template} for row in rows],
        tokenizer,
        mask=Layout.of(model).full_mask(),
        records=True,
        max_length=settings.max_length,
    )


def _asked(row: RewriteRow) -> Any:
    return ask_for_rewrite(row.asked, right=row.right, completion=row.completion)


def _num_cut(tokenizer: Tokenizer, rows: list[RewriteRow], max_length: int) -> int:
    """Count the rows that lose the beginning of their prompt."""
    lengths = (
        len(prompt_ids(tokenizer, _asked(row), template=row.template))
        + len(bare_ids(tokenizer, row.rewrite))
        + 1
        for row in rows
    )
    return sum(length > max_length for length in lengths)


def _base(model: str) -> str:
    """Return the model's name, or the hash of its files if it is a local folder or file."""
    path = Path(model).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    hashes = {file.name: sha256_file(file) for file in files if file.is_file()}
    return sha256_json(hashes) if hashes else model


def _work_folder(out: Path, made_from: Any) -> Path:
    """Return the folder for checkpoints until the rewriter is done; remove checkpoints of other settings."""
    work, key = out.with_name(f"{out.name}.training"), sha256_json(made_from)
    begun = work / "begun"
    if not begun.is_file() or begun.read_bytes() != key.encode():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_atomic(begun, key)
    return work


def _make_room(model: Model, max_length: int) -> None:
    """Let a model read rows of `max_length` if its rotary positions are plain, and so not learned."""
    config = model.config.get_text_config()
    positions = num_positions(config)
    if positions is None or positions >= max_length:
        return
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        raise UserError(
            f"max_length {max_length}: the model has {positions} positions; lower it with --set max_length={positions}."
        )
    config.max_position_embeddings = max_length
