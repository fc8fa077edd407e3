"""Model folders with safetensors, read and written tensor by tensor in bounded memory.

Headers alone give names, shapes and dtypes. Data are read with plain file reads rather than mapped:
pages of a mapping count as resident until they are dropped, plain reads leave one piece at a time.
"""

import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from allo.artifacts import folder_written_aside
from allo.core.fingerprints import CODES, DTYPES, Digest, as_bits, combine
from allo.errors import UserError

INDEX = "model.safetensors.index.json"
# Entries of a tensor read at a time: what is done with them finds them in the processor's cache.
PIECE = 1 << 19

# Other formats' weights beside a checkpoint: a patched copy must not carry them along unpatched.
_WEIGHTS = {".bin", ".pt", ".pth", ".gguf", ".safetensors", ".part"}

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
        """Read the headers of `model.safetensors` or of the shards that the folder's index names.

        Raises UserError for a missing folder or shard, a truncated or damaged file, a tensor that
        the index promises but no shard has, and for pickled weights (with the command that converts them).
        """
        folder = Path(folder)
        files = _files(folder)
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
                    raise _cut(entry)
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
                    raise _cut(entry)
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
                and other.suffix not in _WEIGHTS
                and not other.name.endswith(".bin.index.json")
            ):
                shutil.copyfile(other, part / other.name)


def _cut(entry: Stored) -> UserError:
    return UserError(f"{entry.file} was cut while it was read: copy or download it again")


def _files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; a model of the Hub must be downloaded first (hf download)"
        )
    if (folder / INDEX).is_file():
        files = tuple(folder / shard for shard in sorted(set(_weight_map(folder).values())))
        for file in files:
            if not file.is_file():
                raise UserError(f"{file}: this shard is missing, {INDEX} names it: download the folder again")
        return files
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    refuse_pickles(folder)
    raise UserError(f"{folder} has neither model.safetensors nor {INDEX}")


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        assert all(isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{folder / INDEX} has no valid weight_map: download it again") from error
    return dict(weight_map)


def _read_header(file: Path) -> dict[str, Stored]:
    """The safetensors header: 8 bytes of length, then JSON, then the data it gives offsets into."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if 8 + length <= size else b""
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        start = 8 + length
        entries = {
            name: Stored(
                file=file,
                dtype=DTYPES[entry["dtype"]],
                shape=tuple(entry["shape"]),
                offset=start + entry["data_offsets"][0],
                num_bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is truncated or not a safetensors file: copy or download it again"
        ) from error
    if "allo" in metadata:
        raise UserError(f"{file} is a mask, importance or delta of allo, not a checkpoint")
    end = start
    in_order = dict(sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)))
    for name, entry in in_order.items():
        if entry.offset != end or entry.num_bytes != math.prod(entry.shape) * entry.dtype.itemsize:
            raise UserError(
                f"{file}: the header is wrong about tensor {name}: copy or download the file again"
            )
        end += entry.num_bytes
    if end != size:
        raise UserError(f"{file} is truncated: it has {size} of {end} bytes; copy or download it again")
    return in_order
