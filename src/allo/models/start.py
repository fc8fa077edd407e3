"""The starting model of a run: a folder whose tensors equal those of the live model bit for bit."""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from allo.console import say
from allo.errors import DivergedError, UserError, and_more
from allo.files.artifacts import (
    RunFolder,
    folder_written_aside,
    give_default_mode,
    read_as,
    sha256_file,
    write_json,
)
from allo.models import templates
from allo.models.device import resolve_device
from allo.models.load import (
    MODEL_FILES,
    TOKENIZER_FILES,
    check_folder,
    empty_model,
    load_model,
    load_tokenizer,
    locate_checkpoint,
    quiet,
    read_config,
    without_weights,
)
from allo.models.model_checks import is_ignored
from allo.models.tokenizer_checks import check_ids_fit
from allo.recipe import Recipe
from allo.weights.allowed import Allowed, allowed_by
from allo.weights.checkpoints import Checkpoint, refuse_adapter
from allo.weights.fingerprints import Digest, combine
from allo.weights.finite import check_finite
from allo.weights.layout import Layout, saved_tensors

LOWER_RATE = "Training made it so: lower the learning rate, or check the data."
_QUICKLY_READ = 1 << 30  # bytes of weights that are read before the first stage: a second or two
START_FILE, DATE_FILE = "start.json", "date.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Start:
    """The starting model: a checkpoint folder; `hashes` has each tensor's digest (`checkpoints.digest`).

    `files`: SHA-256 of the tokenizer and configuration files. Stages depend on these too, and outside the run they
    may be edited. `date`: the date that the whole run gives to a chat template that asks for it.
    """

    model: str
    hashes: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    date: str | None = None

    @property
    def fingerprint(self) -> str:
        return combine(self.hashes)


def is_ready(recipe: Recipe) -> Path | None:
    """Return the folder of `recipe.model` if the run can start from it unchanged, otherwise None.

    It must hold safetensors under exactly the names that the live model is stored with, in the run's dtype; weights
    that the family keeps in fp32 may be in either. Tensors that the family ignores stay, and a tied tensor may have a second
    copy. The body's prefix on some names only does not qualify. Raises `UserError` for a folder without a causal
    language model's configuration.
    """
    folder, gguf = locate_checkpoint(recipe.model, MODEL_FILES)
    if gguf is not None:
        return None
    dtype, stored = DTYPES[recipe.dtype], Checkpoint.open(folder).stored
    model = without_weights(folder, recipe.model, dtype=dtype, trust_remote_code=recipe.trust_remote_code)
    layout, live = Layout.whole(model), saved_tensors(model)
    kept = {name: live[min(group.live)].dtype for group in layout.groups for name in group.stored}
    if kept.keys() - stored.keys():
        return None
    copies = layout.copies(stored.keys())
    if any(stored[name].dtype != stored[first].dtype for name, first in copies.items()):
        return None
    if not all(is_ignored(name, model) for name in stored.keys() - kept.keys() - copies.keys()):
        return None
    return folder if all(stored[name].dtype in {kept[name], dtype} for name in kept) else None


def trained_names(folder: Path, *, trust_remote_code: bool = False) -> set[str]:
    """Return the names in `folder` of the tensors that a run trains, from the configuration and headers alone.

    Raises `UserError` for a folder without a causal language model's configuration, and if a run would start from a copy
    under other names.
    """
    layout = Layout.of(without_weights(folder, folder, trust_remote_code=trust_remote_code))
    if absent := layout.shapes.keys() - Checkpoint.open(folder).stored.keys():
        raise UserError(
            f"{folder}: a run starts from a copy in which there is also {min(absent)}{and_more(absent)}"
        )
    return set(layout.shapes)


def check_policy(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the configuration of `recipe.model`, checked for training on the run's device with this tokenizer.

    It reads headers and configurations, of a hub id only small files, so it can run before the first stage. Raises
    `UserError` for a device that does not train, an adapter, quantised weights and contradictory files. Also for a
    tokenizer with more ids than the model has embeddings.
    """
    resolve_device(recipe.device)
    folder, gguf = locate_checkpoint(recipe.model, TOKENIZER_FILES)
    if gguf is None and Path(recipe.model).expanduser().is_dir():
        check_folder(folder, recipe.model, trust_remote_code=recipe.trust_remote_code)
    elif gguf is None:
        refuse_adapter(folder)
    config = read_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    check_ids_fit(tokenizer, config, ref=recipe.model)
    return config


def allowed_in_start(recipe: Recipe) -> Allowed | None:
    """Return the tensors whose weights `locate` may select, from the model's configuration; None if all."""
    locate = recipe.locate
    if locate is None or not (locate.include or locate.exclude):
        return None
    trusts, folder = recipe.trust_remote_code, Path(recipe.model).expanduser()
    if folder.is_dir():
        model = without_weights(folder, recipe.model, trust_remote_code=trusts)
    else:
        model = empty_model(read_config(recipe.model, trust_remote_code=trusts), trust_remote_code=trusts)
    return allowed_by(locate, model, density=recipe.max_density)


def check_values(ref: str | Path) -> str:
    """Check a local model's weights for NaN; return a description of any check that waits until loading, or "".

    Raises `UserError`, naming the tensor, for weights that are NaN or infinite.
    """
    folder = Path(ref).expanduser()
    if folder.is_file():
        return f"{ref}: a GGUF file; the first stage, sft, converts it and checks its weights for NaN"
    if not folder.is_dir():
        return (
            f"{ref}: the weights of a model of the hub, and their headers, are looked at after the download"
        )
    checkpoint = Checkpoint.open(folder)
    num_bytes = sum(file.stat().st_size for file in checkpoint.files)
    if num_bytes > _QUICKLY_READ:
        return (
            f"{ref}: {num_bytes / 2**30:.1f} GiB of weights; more than {_QUICKLY_READ / 2**30:g} GiB are looked at for NaN "
            "when they are loaded"
        )
    for name in checkpoint.stored:
        for _ in _sound_pieces(checkpoint, name):
            pass
    return ""


def load_policy(recipe: Recipe, folder: str | Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load the model in `folder`, in the run's dtype (or `dtype`), onto its device; this rank's rows of a sharded one."""
    if recipe.shards is not None:
        from allo.models.shards import load_shards  # torch's part of it takes time, and few runs need it

        return load_shards(
            folder,
            dtype=dtype or DTYPES[recipe.dtype],
            num_shards=recipe.shards,
            device=recipe.device,
            trust_remote_code=recipe.trust_remote_code,
        )
    return load_model(
        folder,
        dtype=dtype or DTYPES[recipe.dtype],
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
    )


def load_policy_tokenizer(recipe: Recipe, ref: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer at `ref` with the recipe's settings."""
    return load_tokenizer(ref, pad_token=recipe.pad_token, trust_remote_code=recipe.trust_remote_code)


def load_start(
    recipe: Recipe, run: RunFolder, *, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the starting model and its tokenizer."""
    return load_policy(recipe, read_start(run).model, dtype=dtype), load_start_tokenizer(recipe, run)


def load_start_tokenizer(recipe: Recipe, run: RunFolder) -> PreTrainedTokenizerBase:
    """Load the starting model's tokenizer; its chat template gets the run's date."""
    tokenizer = load_policy_tokenizer(recipe, read_start(run).model)
    give_date(tokenizer, run)
    return tokenizer


def give_date(tokenizer: PreTrainedTokenizerBase, run: RunFolder) -> str | None:
    """Give a chat template that asks for it the run's date, and return it.

    The first call stores the date, so that a run resumed on another day keeps it.
    """
    if not templates.asks_for_date(tokenizer):
        return None
    day = date_of(run)
    if day is None:
        day = templates.today()
        write_json(run.start / DATE_FILE, {"date": day.isoformat()})
    templates.use_date(tokenizer, day)
    return day.isoformat()


def date_of(run: RunFolder) -> date | None:
    """Return the date of a run with a starting model, finished or begun; None if no template asked for it."""
    advice = f"Remove {run.start}: its run begins again, with today's date."
    file, day = run.start / DATE_FILE, None
    try:
        if file.is_file():
            day = read_as(file, dict[str, str], advice=advice)["date"]
        elif (run.start / START_FILE).is_file():
            day = read_start(run).date
        return None if day is None else date.fromisoformat(day)
    except (KeyError, ValueError) as error:
        raise UserError(f"{run.start}: no date ({error}). {advice}") from error


def read_start(run: RunFolder) -> Start:
    start = read_as(
        run.start / START_FILE, Start, advice="Start its run again: the first stage is done again."
    )
    return replace(start, model=os.path.normpath(run.path / start.model))


def write_start(run: RunFolder, folder: Path, *, within: Path | None = None, day: str | None = None) -> Start:
    """Record `folder` as the run's starting model, with the digests of its tensors and other files, and the date.

    Raises `UserError`, naming the tensor, for weights that are NaN or infinite.

    A folder inside the run, or inside `within`, which is moved as a whole, is recorded relative to the run.
    """
    checkpoint = Checkpoint.open(folder)
    inside = folder.is_relative_to(within or run.path)
    start = Start(
        os.path.relpath(folder, run.path) if inside else str(folder.resolve()),
        hashes={name: _sound_digest(checkpoint, name) for name in checkpoint.stored},
        files={
            path.name: sha256_file(path)
            for path in sorted(folder.iterdir())
            if any(path.match(pattern) for pattern in TOKENIZER_FILES)
        },
        date=day,
    )
    write_json(run.start / START_FILE, asdict(start))
    return start


def _sound_digest(checkpoint: Checkpoint, name: str) -> str:
    """Return a tensor's digest, checking in the same pass that every entry is finite."""
    digest = Digest(checkpoint.stored[name].dtype, checkpoint.stored[name].shape)
    for piece in _sound_pieces(checkpoint, name):
        digest.update(piece)
    return digest.hexdigest()


def _sound_pieces(checkpoint: Checkpoint, name: str) -> Iterator[torch.Tensor]:
    """Yield the pieces of a tensor. Raises `UserError` at one with an entry that is NaN or infinite."""
    for piece in checkpoint.pieces(name):
        check_finite(
            [(name, piece)],
            where=str(checkpoint.folder),
            advice="Download it again, or give another checkpoint.",
        )
        yield piece


@contextmanager
def converted(gguf: Path, *, dtypes: Collection[torch.dtype]) -> Iterator[Path]:
    """Yield a folder with the model of a GGUF file, as a run that starts from the file makes it, and remove it.

    `dtypes` are those of tensors of the run.
    """
    dtype = torch.bfloat16 if torch.bfloat16 in dtypes else torch.float32
    say(f"{gguf}: a GGUF file, converted as a run does it, in {str(dtype).removeprefix('torch.')}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_whole(load_model(gguf, dtype=dtype, device="cpu"), load_tokenizer(gguf), folder)
        yield folder


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer to a temporary folder, then rename it.

    Raises `DivergedError` for weights that are NaN or infinite, and `UserError` if other tensors are saved than the
    model's layout says. Indices then could not be transferred between them.
    """
    check_finite(model.named_parameters(), where=str(folder), advice=LOWER_RATE, kind=DivergedError)
    with folder_written_aside(folder, replaces=True) as part:
        with quiet():
            model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        for file in part.iterdir():
            give_default_mode(file)
        layout, stored = Layout.whole(model).shapes, Checkpoint.open(part).shapes
        if layout != stored:
            name = min(name for name in layout | stored if layout.get(name) != stored.get(name))
            raise UserError(
                f"{type(model).__name__} stores its weights under other names than it trains them "
                f"(first: {name}), which allo does not support."
            )
