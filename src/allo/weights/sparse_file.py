"""The one file format of masks, importance scores and deltas: some entries of every tensor.

The file is a safetensors file with a JSON header under the single metadata key `allo`. One key, because safetensors
does not keep the order of several, and equal content must give equal bytes. Each tensor with entries has one of the
following and, if requested, a `<tensor name>.<column>` of equal length:

- in the profile "interop" `<tensor name>.indices`: sorted, unique, row-major flat indices in the
  checkpoint's coordinates (int32). A delta's `.indices` and `.values` are those that vLLM's
  `SparseWeightPatch` takes, uncompressed and aligned, so that they can be mapped into memory;
- in the profile "compact" `<tensor name>.gaps`: the same indices in the code of `gap_code` (uint8).

The header's `digest` covers the rest of the header and every index and value, so damaged bits are detected. It is the
same in both profiles.

Readers detect the profile. Tensors are encoded and written, or read and decoded, one at a time.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import written_aside
from allo.files.json_text import parse_json
from allo.weights import gap_code
from allo.weights.fingerprints import CODES, combine, digests
from allo.weights.places import has_numbers

SCHEMA = 4
# Schema 1 is the profile "interop", which had no name then; schemas 2 and 3 have gaps in another code.
_OLDER = (1, 2, 3)
_WITHOUT_DIGEST = (1, 2)
_KEY = "allo"
REACH = 1 << 31
"""The entries of a tensor that int32 indices reach."""
_ALIGNED = 8  # bytes: the alignment that the widest dtype needs in a mapped file

Profile = Literal["compact", "interop"]
Keep = Callable[[str, Tensor], Tensor]
"""Returns the part of a tensor's flat indices that its reader needs."""


@dataclass(frozen=True)
class SparseFile:
    """A file's content. `shapes` has every tensor of the model, `indices` only those with entries."""

    shapes: dict[str, tuple[int, ...]]
    indices: dict[str, Tensor]
    column: dict[str, Tensor]
    header: dict[str, Any]


def write(
    path: Path, kind: str, content: SparseFile, *, column: str = "", profile: Profile = "compact"
) -> None:
    """Write `content` to a temporary file, then rename it: `path` is complete or absent. `kind` is "mask", "delta",
    ...
    """
    assert column or not content.column
    check_profile(profile)
    stored = {f"{name}.{column}": values for name, values in content.column.items()}
    if profile == "interop":
        stored |= {f"{name}.indices": indices for name, indices in content.indices.items()}
    # Widest dtype first, as in safetensors, so that each part begins at a multiple of its width.
    parts: list[_Part] = [
        (key, CODES[tensor.dtype], _bytes_of(tensor))
        for key, tensor in sorted(stored.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    ]
    if profile == "compact":
        parts += [
            (f"{name}.gaps", CODES[torch.uint8], _gaps_of(indices))
            for name, indices in sorted(content.indices.items())
        ]
    shapes = {name: list(shape) for name, shape in content.shapes.items()}
    header = {"kind": kind, "schema": SCHEMA, "profile": profile, "shapes": shapes, **content.header}
    found = [_digests_of(name, content.indices, content.column) for name in content.indices]
    header["digest"] = _digest(header, {key: digest for each in found for key, digest in each.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as part:
        _write_safetensors(part, parts, metadata={_KEY: json.dumps(header, sort_keys=True)})


def read(path: Path, kind: str, *, column: str = "", keep: Keep | None = None) -> SparseFile:
    """Read and check a file that `write` wrote, in either profile; of each tensor's indices only those that `keep` returns.

    Raises UserError if the file is missing or truncated, is of another kind or schema, or does not match its digest.
    Also if its indices are not int32 (or do not decode to it), sorted, unique and within their tensor's shape. You
    are warned if the file is of an older version, which has no digest.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, keys = file.metadata() or {}, set(file.keys())
            return _content(path, kind, metadata, keys, file.get_tensor, column, keep)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}): write it again") from error


def kind_of(path: Path) -> str:
    """Return the kind that the file says it has; "" if it cannot be read, which `read` reports."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(_header(path, file.metadata() or {}).get("kind", ""))
    except (SafetensorError, OSError, UserError):
        return ""


def profile_of(path: Path) -> str:
    """Return the profile of a file that `read` has accepted."""
    with safe_open(path, framework="pt") as file:
        return str(_header(path, file.metadata() or {}).get("profile", "interop"))


def check_profile(profile: str) -> None:
    """Raise UserError unless `profile` is one of the two that `write` knows."""
    if profile not in get_args(Profile):
        raise UserError(f"profile {profile!r} is unknown: choose {' or '.join(get_args(Profile))}")


def check_reach(name: str, end: int) -> None:
    """Raise UserError if indices below `end` do not fit into int32, before they wrap around."""
    if end > REACH:
        raise UserError(
            f"tensor {name}: entry {end - 1:,} is chosen or changed, and indices of 32 bits, allo's and vLLM's, end at "
            f"{REACH - 1:,}. Leave this tensor out of training, or keep the whole model instead of a mask or delta"
        )


def check_indices(name: str, indices: Tensor, shape: tuple[int, ...], *, where: str) -> None:
    """Raise UserError unless `indices` is a sorted, unique int32 [num_entries] within a tensor of `shape`."""
    if indices.dtype != torch.int32 or indices.dim() != 1:
        found = f"{indices.dtype} of shape {list(indices.shape)}"
        raise UserError(f"{where}: {name}.indices must be a one-dimensional int32 tensor, found {found}")
    if len(indices) == 0 or not has_numbers(indices):
        return
    if not bool((indices[1:] > indices[:-1]).all()):
        raise UserError(f"{where}: {name}.indices must be sorted and unique")
    if int(indices[0]) < 0 or int(indices[-1]) >= math.prod(shape):
        reach = f"{int(indices[0])} to {int(indices[-1])}"
        raise UserError(
            f"{where}: {name}.indices go from {reach}, outside of a tensor of shape {list(shape)}"
        )


def check_same_shapes(
    mine: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
    """Raise UserError naming the first tensor, and both shapes, for which `what` and a model differ."""
    for name in [*mine, *(name for name in others if name not in mine)]:
        left, right = (list(side[name]) if name in side else None for side in (mine, others))
        if left != right:
            sides = f"{left or 'absent'} there, {right or 'absent'} in this model"
            raise UserError(f"{what} was made for another model: tensor {name} is {sides}")


_LONGEST = 10**15  # bytes: no part is longer
_WIDTH = {code: dtype.itemsize for dtype, code in CODES.items()}
# Key, safetensors' dtype code, and a function that returns the one-dimensional data as bytes.
_Part = tuple[str, str, Callable[[], memoryview]]


def _bytes_of(tensor: Tensor) -> Callable[[], memoryview]:
    return lambda: tensor.cpu().contiguous().view(torch.uint8).numpy().data


def _gaps_of(indices: Tensor) -> Callable[[], memoryview]:
    return lambda: gap_code.encode(indices.cpu().contiguous().numpy()).data


def _write_safetensors(path: Path, parts: list[_Part], *, metadata: dict[str, str]) -> None:
    """Write one part at a time and the header last, since an encoded part's length is known only then.

    Room for the longest possible header is reserved; spaces, which the format allows, fill the rest.
    """

    def header(ends: list[int]) -> bytes:
        entries: dict[str, Any] = {"__metadata__": metadata}
        for (key, code, _), start, end in zip(parts, [0, *ends], ends, strict=False):
            entries[key] = {
                "dtype": code,
                "shape": [(end - start) // _WIDTH[code]],
                "data_offsets": [start, end],
            }
        return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()

    longest = len(header([_LONGEST * number for number in range(1, len(parts) + 1)]))
    room = -(-(8 + longest) // _ALIGNED) * _ALIGNED - 8
    ends, written = [], 0
    with path.open("wb") as file:
        file.seek(8 + room)
        for _, _, data in parts:
            written += file.write(data())
            ends.append(written)
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header(ends).ljust(room))


def _content(
    path: Path,
    kind: str,
    metadata: Mapping[str, str],
    keys: set[str],
    get: Callable[[str], Tensor],
    column: str,
    keep: Keep | None,
) -> SparseFile:
    header = _header(path, metadata)
    promised = header.pop("digest", None)
    whole = dict(header)
    found = header.pop("kind", None)
    if found != kind:
        raise UserError(f"{path} is not a {kind} of allo: its header says {found!r}")
    schema = header.pop("schema", None)
    if schema not in (*_OLDER, SCHEMA):
        raise UserError(f"{path} has schema {schema!r}, but this allo reads schema {SCHEMA}: write it again")
    part = "gaps" if header.pop("profile", "interop") == "compact" else "indices"
    if part == "gaps" and schema != SCHEMA:
        raise UserError(
            f"{path} has schema {schema}, with gaps in Rice codes; this allo reads schema {SCHEMA}, with gaps by zlib: "
            "remove the file and repeat the command that wrote it"
        )
    shapes = _shapes(path, header.pop("shapes", None))
    columns = (part, column) if column else (part,)
    for key in sorted(keys - {f"{name}.{part}" for name in shapes for part in columns}):
        raise UserError(f"{path}: unexpected tensor {key}, which the header's shapes do not name")
    content = SparseFile(shapes=shapes, indices={}, column={}, header=header)
    read_digests: dict[str, str] = {}
    for name in _present(path, shapes, keys, columns):
        stored = get(f"{name}.{part}")
        content.indices[name] = _unpacked(path, name, stored, shapes[name]) if part == "gaps" else stored
        check_indices(name, content.indices[name], shapes[name], where=str(path))
        if column:
            content.column[name] = get(f"{name}.{column}")
            if content.column[name].shape != content.indices[name].shape:
                raise UserError(f"{path}: {name}.{column} and {name}.{part} differ in length")
        read_digests |= _digests_of(name, content.indices, content.column)
        if keep is not None:
            assert not column
            content.indices[name] = keep(name, content.indices[name])
    if promised is None and schema in _WITHOUT_DIGEST:
        say(f"{path} has no digest, as in older versions of allo: damage to its content cannot be detected")
    elif promised != _digest(whole, read_digests):
        raise UserError(
            f"{path}: its content does not match the digest in its header: the file is damaged. Write it again, "
            "or remove it and download it again"
        )
    return content


def _digest(header: Mapping[str, Any], found: Mapping[str, str]) -> str:
    """Return the digest of the tensors' digests and of the header without digest and profile, bit for bit."""
    told = {key: value for key, value in header.items() if key != "profile"}
    return hashlib.sha256(f"{json.dumps(told, sort_keys=True)}\n{combine(found)}".encode()).hexdigest()


def _digests_of(name: str, indices: Mapping[str, Tensor], column: Mapping[str, Tensor]) -> dict[str, str]:
    parts = {f"{name}.indices": indices[name]}
    return digests((parts | ({f"{name}.values": column[name]} if name in column else {})).items())


def _present(
    path: Path, shapes: Mapping[str, tuple[int, ...]], keys: set[str], columns: tuple[str, ...]
) -> Iterator[str]:
    """Yield the tensors that have entries. Raises UserError if one lacks some of its columns."""
    for name in shapes:
        missing = [f"{name}.{part}" for part in columns if f"{name}.{part}" not in keys]
        if not missing:
            yield name
        elif len(missing) < len(columns):
            raise UserError(f"{path}: tensor {missing[0]} is missing: the file is damaged, write it again")


def _unpacked(path: Path, name: str, stream: Tensor, shape: tuple[int, ...]) -> Tensor:
    if stream.dtype != torch.uint8 or stream.dim() != 1:
        found = f"{stream.dtype} of shape {list(stream.shape)}"
        raise UserError(f"{path}: {name}.gaps must be a one-dimensional uint8 tensor, found {found}")
    where = f"{path}: tensor {name}"
    return torch.from_numpy(gap_code.decode(stream.numpy(), size=math.prod(shape), where=where))


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if _KEY not in metadata:
        raise UserError(f"{path} is a safetensors file but not one of allo's: it has no allo header")
    header = parse_json(metadata[_KEY], place=f"{path}: the allo header", advice="Write the file again.")
    if not isinstance(header, dict):
        raise UserError(f"{path}: the allo header must be a JSON object")
    return header


def _shapes(path: Path, raw: object) -> dict[str, tuple[int, ...]]:
    def is_shape(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(size, int) and size >= 0 for size in value)

    if not isinstance(raw, dict) or not all(is_shape(value) for value in raw.values()):
        raise UserError(f"{path}: the header has no valid shapes: the file is damaged, write it again")
    return {name: tuple(value) for name, value in raw.items()}
