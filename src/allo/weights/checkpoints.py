"""Model folders with safetensors, read and written tensor by tensor in bounded memory.

Names, shapes and dtypes come from the headers alone. Data come through plain reads, one piece at a time: the pages of
a memory mapping would stay resident until they are dropped.
"""

import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allo.errors import UserError, and_more
from allo.files.artifacts import folder_written_aside
from allo.files.json_text import parse_json
from allo.weights.fingerprints import CODES, DTYPES, Digest, as_bits, combine

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
ADAPTER = "adapter_config.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_AGAIN = "Copy or download it again."
_LARGEST_HEADER = 100_000_000  # bytes, the safetensors library's own limit
# Entries of a tensor read at a time, few enough to stay in the processor's cache while they are processed.
PIECE = 1 << 19

# Weights in other formats: a patched copy of the folder must not contain them unpatched.
_WEIGHTS = {
    *(".bin", ".pt", ".pth", ".ckpt", ".gguf", ".safetensors", ".part"),
    *(".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite", ".npz"),
}
_OTHER_INDEX = re.compile(r".+\.(bin|h5|msgpack|safetensors)\.index.*\.json")

DENSE = "Give the dense original (bf16, fp16 or fp32) that it was made from; its card often names it as base_model."
_MERGE = (
    "import sys, transformers as t; from peft import PeftModel; base, adapter, out = sys.argv[1:]; "
    "model = PeftModel.from_pretrained(t.{kind}.from_pretrained(base), adapter).merge_and_unload(); "
    "model.save_pretrained(out); t.AutoTokenizer.from_pretrained(base).save_pretrained(out)"
)
_PICKLES = "pytorch_model*.bin"  # the name that transformers gives pickled weights
_CONVERT = (
    "import glob, sys, torch; from safetensors.torch import save_file; "
    f'files = sorted(glob.glob(glob.escape(sys.argv[1]) + "/{_PICKLES}")); '
    'load = lambda f: torch.load(f, map_location="cpu", weights_only=True); '
    "save_file({n: t.clone().contiguous() for f in files for n, t in load(f).items()}, "
    'sys.argv[1] + "/model.safetensors", metadata={"format": "pt"})'
)


@dataclass(frozen=True)
class Stored:
    """A tensor's place on disk: `num_bytes` bytes of `file`, starting at `offset`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder's weights: files in order, tensors in the order of the files' data."""

    folder: Path
    files: tuple[Path, ...]
    stored: dict[str, Stored]

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """Read the headers of the files that `weight_files` finds.

        Raises UserError as `weight_files` does, for a truncated or damaged file, and for a tensor that the index
        names but no shard has.
        """
        folder = Path(folder)
        files = weight_files(folder)
        stored: dict[str, Stored] = {}
        for file in files:
            for name, entry in _read_header(file).items():
                if name in stored:
                    raise UserError(f"{file}: tensor {name} is also in {stored[name].file.name}")
                stored[name] = entry
        if (folder / INDEX).is_file():
            for name, shard in _weight_map(folder).items():
                if name not in stored or stored[name].file.name != shard:
                    raise UserError(f"{folder / shard}: tensor {name} is missing, {INDEX} promises it")
        return cls(folder, files, stored)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.stored.items()}

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Yield the flattened tensor, or its entries from `start` to `stop`, at most `PIECE` at a time (CPU, the stored dtype)."""
        entry = self.stored[name]
        width = entry.dtype.itemsize
        end = entry.num_bytes if stop is None else stop * width
        with entry.file.open("rb") as file:
            file.seek(entry.offset + start * width)
            for place in range(start * width, end, PIECE * width):
                data = torch.empty(min(PIECE * width, end - place), dtype=torch.uint8)
                if file.readinto(data.numpy().data) != len(data):
                    raise _damaged(entry.file, "was cut while it was read")
                yield data.view(entry.dtype)

    def pages(self, name: str, starts: Sequence[int], num: int) -> Tensor:
        """Return `num` entries of the flattened tensor from each of `starts` on, concatenated."""
        entry = self.stored[name]
        step = num * entry.dtype.itemsize
        data = torch.empty(len(starts) * step, dtype=torch.uint8)
        target = data.numpy().data
        with entry.file.open("rb", buffering=0) as file:
            for number, start in enumerate(starts):
                place = entry.offset + start * entry.dtype.itemsize
                if os.preadv(file.fileno(), [target[number * step : (number + 1) * step]], place) != step:
                    raise _damaged(entry.file, "was cut while it was read")
        return data.view(entry.dtype)

    def read(self, name: str) -> Tensor:
        """Return the whole tensor (CPU, the stored dtype)."""
        entry = self.stored[name]
        flat = torch.cat(list(self.pieces(name))) if entry.num_bytes else torch.empty(0, dtype=entry.dtype)
        return flat.reshape(entry.shape)

    def digest(self, name: str) -> str:
        """Return the digest that `digests` gives the same tensor in memory."""
        state = Digest(self.stored[name].dtype, self.stored[name].shape)
        for piece in self.pieces(name):
            state.update(piece)
        return state.hexdigest()


def fingerprint(folder: str | Path) -> str:
    """Return a digest of all tensors' names, dtypes, shapes and bits; sharding does not change it."""
    checkpoint = Checkpoint.open(folder)
    return combine({name: checkpoint.digest(name) for name in checkpoint.stored})


def refuse_pickles(folder: Path) -> None:
    """Raise UserError, with the command that converts them, if `folder` holds pickled weights."""
    pickled = sorted(file.name for file in folder.glob(_PICKLES))
    if pickled:
        raise UserError(
            f"{folder} holds pickled weights ({pickled[0]}), which allo does not open; convert them:\n"
            f"  python -c {shlex.quote(_CONVERT)} {shlex.quote(str(folder))}"
        )


def check_same_layout(base: Checkpoint, tuned: Checkpoint) -> None:
    """Raise UserError naming the first tensor whose presence, shape or dtype differs."""
    for name in [*base.stored, *(name for name in tuned.stored if name not in base.stored)]:
        sides = [checkpoint.stored.get(name) for checkpoint in (base, tuned)]
        left, right = (f"{CODES[s.dtype]} {list(s.shape)}" if s else "absent" for s in sides)
        if left != right:
            raise UserError(
                f"{base.folder} and {tuned.folder} are not of one model: tensor {name} is {left} in the first"
                f" and {right} in the second; save both with the same library and dtype"
            )


def write_like(
    base: Checkpoint, out: str | Path, patched: Callable[[str, Iterator[Tensor]], Iterable[Tensor]]
) -> None:
    """Write a copy of `base` to the folder `out`: same sharding, headers and other files, patched data.

    `patched(name, pieces)` gets a tensor's flat pieces and returns pieces of the same total size. `out` appears once
    it is complete. Raises UserError if `out` is not empty.
    """
    with folder_written_aside(Path(out)) as part:
        for file in base.files:
            entries = {name: entry for name, entry in base.stored.items() if entry.file == file}
            with (part / file.name).open("wb") as target:
                with file.open("rb") as source:
                    target.write(source.read(min((entry.offset for entry in entries.values()), default=-1)))
                for name in entries:
                    for piece in patched(name, base.pieces(name)):
                        target.write(as_bits(piece).numpy().data)
            assert (part / file.name).stat().st_size == file.stat().st_size
        for other in sorted(base.folder.iterdir()):
            if (
                other.is_file()
                and other.suffix.lower() not in _WEIGHTS
                and (other.name == INDEX or not _OTHER_INDEX.fullmatch(other.name))
            ):
                shutil.copyfile(other, part / other.name)


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} {what}. {_AGAIN}")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold a folder's weights: `model.safetensors`, or the shards that its index names.

    Every reader of weights calls this function, so all read the same tensors. Weights under other names are ignored
    (`consolidated.safetensors`, `model.fp16.safetensors`, `pytorch_model.bin` beside safetensors).

    Raises UserError for a missing folder or shard, an adapter, and pickled weights (with the command that converts
    them). Also if the choice is ambiguous: a whole model beside shards, or a shard that the index does not name.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; a model of the Hub must be downloaded first (hf download)"
        )
    refuse_adapter(folder)
    single, index = folder / SINGLE, folder / INDEX
    named = sorted(set(_weight_map(folder).values())) if index.is_file() else []
    shards = sorted(file.name for file in folder.iterdir() if _SHARD.fullmatch(file.name))
    if single.is_file():
        others = sorted({*named, *shards} - {SINGLE})
        if others:
            raise UserError(
                f"{folder} holds its weights twice, in {SINGLE} and in {others[0]}{and_more(others)}: which of them "
                f"count? Keep one: remove {SINGLE}, or remove the shards and {INDEX}."
            )
        named = [SINGLE]
    elif named:
        strays = [name for name in shards if name not in named]
        if strays:
            raise UserError(
                f"{folder}: {strays[0]}{and_more(strays)} is not named in {INDEX}, so the folder mixes two downloads or "
                "its index is old: remove the shards that do not belong to it, or download the folder again."
            )
    elif shards:
        raise UserError(f"{folder} has shards ({shards[0]}) but no {INDEX}: download the folder again.")
    else:
        refuse_pickles(folder)
        for file in (single, index):
            if file.exists() or file.is_symlink():
                raise UserError(
                    f"{file} is no file that can be read: a folder, or a link to nothing. Download the folder again."
                )
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        found = (
            f", only {others[0]}{and_more(others)}: rename the file that holds the model" if others else ""
        )
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}{found}. Give a complete checkpoint.")
    for name in named:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: this shard is missing, {INDEX} names it: download the folder again"
            )
    _refuse_other_name(folder, named)
    return tuple(folder / name for name in named)


def refuse_adapter(folder: Path) -> None:
    """Raise UserError, with the command that merges it, if `folder` holds an adapter.

    With PEFT installed, transformers would silently apply the adapter to the weights.
    """
    file = folder / ADAPTER
    if not file.exists():
        return
    settings: dict[str, Any] = {}
    with suppress(UserError):
        settings = _json_object(file)
    classifier = settings.get("task_type") == "SEQ_CLS"
    code = _MERGE.format(kind=f"AutoModelFor{'SequenceClassification' if classifier else 'CausalLM'}")
    if (folder / "config.json").is_file():
        what = (
            f"an adapter ({ADAPTER}) beside a whole model, and transformers would load both. If it is merged already, "
            f"remove {ADAPTER}; otherwise move the adapter's files into a folder of their own and merge it"
        )
        places = [str(folder), "ADAPTER", "MERGED"]
    else:
        what = f"an adapter ({ADAPTER}) and no whole model. Merge it into its base and give the merged folder"
        places = [str(settings.get("base_model_name_or_path") or "BASE"), str(folder), "MERGED"]
    raise UserError(f"{folder} holds {what}:\n  python -c {shlex.join([code, *places])}")


def _refuse_other_name(folder: Path, named: Sequence[str]) -> None:
    """Raise UserError if config.json points transformers to another file (`transformers_weights`)."""
    config = folder / "config.json"
    if not config.is_file():
        return
    asked = read_config_json(folder).get("transformers_weights")
    if asked is not None and asked != INDEX and [asked] != list(named):
        raise UserError(
            f"{config}: `transformers_weights` names {asked!r}, but allo reads {named[0]}: remove the key, or rename the file."
        )


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises UserError unless it is a JSON object."""
    return _json_object(folder / "config.json")


def _json_object(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error}). {_AGAIN}") from error
    found = parse_json(raw, place=str(file), advice=_AGAIN, largest=_LARGEST_HEADER)
    if not isinstance(found, dict):
        raise UserError(f"{file}: must be a JSON object, found {type(found).__name__}. {_AGAIN}")
    return found


def _weight_map(folder: Path) -> dict[str, str]:
    file = folder / INDEX
    found = _json_object(file).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise _damaged(file, "has no valid weight_map")
    for name, shard in found.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
            why = f"tensor {name} is said to be in {shard!r}, which is no file of the folder"
            raise _damaged(file, f"has no valid weight_map: {why}")
        if not shard.endswith(SUFFIX):
            raise UserError(
                f"{file}: tensor {name} is said to be in {shard!r}. Only of a name that ends with {SUFFIX} does "
                "transformers know that the file is no pickle: rename it, there and in the folder."
            )
    return dict(found)


def _read_header(file: Path) -> dict[str, Stored]:
    """Parse a safetensors header: 8 bytes of length, JSON, then the data that its offsets refer to."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if 8 + length <= size and length <= _LARGEST_HEADER else b""
    if len(raw) < 2:
        raise _damaged(file, "is truncated or not a safetensors file")
    header = parse_json(raw, place=f"{file} is truncated or not a safetensors file", advice=_AGAIN)
    if not isinstance(header, dict) or not isinstance(metadata := header.pop("__metadata__", {}), dict):
        raise _damaged(file, "is not a safetensors file")
    if "allo" in metadata:
        raise UserError(f"{file} is a mask, importance or delta of allo, not a checkpoint")
    end = start = 8 + length
    entries = {name: _entry(file, name, raw_entry, start) for name, raw_entry in header.items()}
    in_order = dict(sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)))
    for name, entry in in_order.items():
        if entry.offset != end or entry.num_bytes != math.prod(entry.shape) * entry.dtype.itemsize:
            raise _wrong_about(name, file)
        end += entry.num_bytes
    if end != size:
        raise _damaged(file, f"is truncated: it has {size} of {end} bytes")
    return in_order


def _wrong_about(name: str, file: Path) -> UserError:
    return _damaged(file, f"is damaged: the header is wrong about tensor {name}")


def _entry(file: Path, name: str, raw: Any, start: int) -> Stored:
    """Parse one tensor's entry in a header; `start` is the byte at which the data begin."""
    match raw:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [first, last]}:
            sizes = [*shape, first, last]
        case _:
            raise _wrong_about(name, file)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise _wrong_about(name, file)
    if code not in DTYPES:
        raise UserError(
            f"{file}: tensor {name} is stored as {code}, which allo does not read: a dtype of quantised weights, or a "
            f"damaged file. {DENSE}"
        )
    return Stored(file, DTYPES[code], tuple(shape), offset=start + first, num_bytes=last - first)
