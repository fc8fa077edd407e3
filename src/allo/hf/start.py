"""The starting model of a run: a folder whose tensors are, bit for bit, those of the live model."""

import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from allo.artifacts import RunFolder, give_default_mode, read_as, sha256_file, sync_all, write_json
from allo.checkpoints import Checkpoint
from allo.core.fingerprints import combine
from allo.errors import UserError
from allo.hf.models import (
    MODEL_FILES,
    TOKENIZER_FILES,
    load_model,
    load_tokenizer,
    locate_checkpoint,
    parameter_names,
    quiet,
)
from allo.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Start:
    """`model`: a checkpoint folder; `hashes`: each tensor's digest (`checkpoints.digest`).

    `files`: the SHA-256 of the tokenizer's and the configuration's files, on which stages depend too
    and which may be edited where the folder lies outside of the run.
    """

    model: str
    hashes: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return combine(self.hashes)


def is_ready(recipe: Recipe) -> Path | None:
    """The folder of `recipe.model` where the run can start from it as it lies, else None.

    It can where it holds safetensors in the run's dtype under exactly the live model's names: not one
    of a bare backbone, nor a second copy of a tied tensor. Raises `UserError` for a folder without a
    causal language model's configuration.
    """
    folder, gguf = locate_checkpoint(recipe.model, MODEL_FILES)
    if gguf is not None or not any(folder.glob("*.safetensors")):
        return None
    stored = Checkpoint.open(folder).stored
    if {entry.dtype for entry in stored.values()} != {DTYPES[recipe.dtype]}:
        return None
    live = parameter_names(folder, trust_remote_code=recipe.trust_remote_code)
    return folder if stored.keys() == live else None


def load_policy(recipe: Recipe, folder: str | Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model in `folder`, in the run's dtype (or `dtype`) on its device."""
    return load_model(
        folder,
        dtype=dtype or DTYPES[recipe.dtype],
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
    )


def load_start(
    recipe: Recipe, run: RunFolder, *, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The starting model and its tokenizer."""
    return load_policy(recipe, read_start(run).model, dtype=dtype), load_start_tokenizer(recipe, run)


def load_start_tokenizer(recipe: Recipe, run: RunFolder) -> PreTrainedTokenizerBase:
    return load_tokenizer(
        read_start(run).model, pad_token=recipe.pad_token, trust_remote_code=recipe.trust_remote_code
    )


def read_start(run: RunFolder) -> Start:
    start = read_as(
        run.start / "start.json", Start, advice="Start its run again: the first stage is done again."
    )
    return replace(start, model=os.path.normpath(run.path / start.model))


def write_start(run: RunFolder, folder: Path, *, within: Path | None = None) -> Start:
    """Record `folder` as the run's starting model, with the digests of its tensors and other files.

    A folder inside the run, or inside `within`, which is moved as a whole, is recorded relative to the run.
    """
    checkpoint = Checkpoint.open(folder)
    inside = folder.is_relative_to(within or run.path)
    start = Start(
        os.path.relpath(folder, run.path) if inside else str(folder.resolve()),
        hashes={name: checkpoint.digest(name) for name in checkpoint.stored},
        files={
            path.name: sha256_file(path)
            for path in sorted(folder.iterdir())
            if any(path.match(pattern) for pattern in TOKENIZER_FILES)
        },
    )
    write_json(run.start / "start.json", asdict(start))
    return start


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer aside, then rename the folder.

    Raises `UserError` where the saved tensors have other names than the live ones, since indices
    could then not be carried from the one to the other.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with quiet():
        model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    for file in part.iterdir():
        give_default_mode(file)
    live = {name for name, _ in model.named_parameters()}
    stored = set(Checkpoint.open(part).stored)
    if live != stored:
        raise UserError(
            f"{type(model).__name__} stores its weights under other names than it trains them "
            f"(first: {min(live ^ stored)}), which allo does not support."
        )
    sync_all(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
