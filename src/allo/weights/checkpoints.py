"""Model folders with safetensors, read and written tensor by tensor in bounded memory.

Headers alone give names, shapes and dtypes. Data are read with plain file reads rather than mapped:
pages of a mapping count as resident until they are dropped, plain reads leave one piece at a time.
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
_LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
# Entries of a tensor read at a time: what is done with them finds them in the processor's cache.
PIECE = 1 << 19

# Other formats' weights beside a checkpoint: a patched copy must not carry them along unpatched.
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
_PICKLES = "pytorch_model*.bin"  # what transformers calls pickled weights
_CONVERT = (
    "import glob, sys, torch; from safetensors.torch import save_file; "
    f'files = sorted(glob.glob(glob.escape(sys.argv[1]) + "/{_PICKLES}")); '
    'load = lambda f: torch.load(f, map_location="cpu", weights_only=True); '
    "save_file({n: t.clone().contiguous() for f in files for n, t in load(f).items()}, "
    'sys.argv[1] + "/model.safetensors", metadata={"format": "pt"})'
)


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: `num_bytes` bytes from `offset` on in `file`."""

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
        promises but no shard has.
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

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The flattened tensor, at most `PIECE` entries at a time (CPU, the stored dtype)."""
        entry = self.stored[name]
        step = PIECE * entry.dtype.itemsize
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            for start in range(0, entry.num_bytes, step):
                data = torch.empty(min(step, entry.num_bytes - start), dtype=torch.uint8)
                if file.readinto(data.numpy().data) != len(data):
                    raise _damaged(entry.file, "was cut while it was read")
                yield data.view(entry.dtype)

    def pages(self, name: str, starts: Sequence[int], num: int) -> Tensor:
        """The `num` entries of the flattened tensor from each of `starts` on, one after the other."""
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
        """The whole tensor (CPU, the stored dtype)."""
        entry = self.stored[name]
        flat = torch.cat(list(self.pieces(name))) if entry.num_bytes else torch.empty(0, dtype=entry.dtype)
        return flat.reshape(entry.shape)

    def digest(self, name: str) -> str:
        """As `digests` gives it for the same tensor in memory."""
        state = Digest(self.stored[name].dtype, self.stored[name].shape)
        for piece in self.pieces(name):
            state.update(piece)
        return state.hexdigest()


def fingerprint(folder: str | Path) -> str:
    """Identifies a folder's weights by names, dtypes, shapes and bits; sharding does not matter."""
    checkpoint = Checkpoint.open(folder)
    return combine({name: checkpoint.digest(name) for name in checkpoint.stored})


def refuse_pickles(folder: Path) -> None:
    """UserError, with the command that converts them, where `folder` holds pickled weights."""
    pickled = sorted(file.name for file in folder.glob(_PICKLES))
    if pickled:
        raise UserError(
            f"{folder} holds pickled weights ({pickled[0]}), which allo does not open; convert them:\n"
            f"  python -c {shlex.quote(_CONVERT)} {shlex.quote(str(folder))}"
        )


def check_same_layout(base: Checkpoint, tuned: Checkpoint) -> None:
    """UserError naming the first tensor whose presence, shape or dtype differs."""
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
    """Write `base` again as the folder `out`: same sharding, headers and other files, patched data.

    `patched(name, pieces)` gets a tensor's flat pieces and gives pieces of the same total size.
    Everything is written aside. UserError when `out` already holds something.
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

    Everything that reads weights asks this function, so all of it reads the same tensors. Weights under other names
    (`consolidated.safetensors`, `model.fp16.safetensors`, `pytorch_model.bin` beside safetensors) are not read.

    Raises UserError for a missing folder or shard, for pickled weights (with the command that converts them), for an
    adapter, and where two files could be meant: a whole model beside shards, or a shard that the index does not name.
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
    """Raise UserError, with the command that merges it, for a folder that holds an adapter.

    transformers puts an adapter onto the weights without a word, where PEFT is installed.
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
    """Raise UserError if config.json sends transformers to another file (`transformers_weights`)."""
    config = folder / "config.json"
    if not config.is_file():
        return
    asked = read_config_json(folder).get("transformers_weights")
    if asked is not None and asked != INDEX and [asked] != list(named):
        raise UserError(
            f"{config}: `transformers_weights` names {asked!r}, but allo reads {named[0]}: remove the key, or rename the file."
        )


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json; raises UserError if it is no JSON object."""
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
    """The safetensors header: 8 bytes of length, then JSON, then the data it gives offsets into."""
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
    """One tensor of a header whose data begin at byte `start`."""
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
