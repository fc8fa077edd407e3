"""A delta: a small file with the entries that alignment changed, which turns one exact base into one exact model.

A delta is a sparse file with the indices of the touched entries and `<name>.values`. These are replacement values in
the weight's own dtype, not differences, so applying them loses nothing to rounding. Its header has the digest of
every tensor of the base, touched or not, so a wrong base is always refused.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from allo.console import say
from allo.errors import UserError
from allo.weights import sparse_file
from allo.weights.fingerprints import combine
from allo.weights.finite import first_not_finite

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)
}


@dataclass(frozen=True, eq=False)
class Delta:
    """A delta: `indices` and `values` of touched tensors; `shapes` and `base_hashes` of every tensor.

    `base_hashes` are `fingerprints.digests`. `metadata` may say how the weights were selected, and the base's dtypes.
    """

    indices: dict[str, Tensor]
    values: dict[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    base_hashes: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def num_changed(self) -> int:
        return sum(len(indices) for indices in self.indices.values())

    @property
    def num_weights(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def base_dtypes(self) -> set[torch.dtype]:
        """Return the dtypes of all tensors of the base; of an older delta, those of the touched ones."""
        named = self.metadata.get("base_dtypes", "").split()
        return {_DTYPES[name] for name in named if name in _DTYPES} or {
            values.dtype for values in self.values.values()
        }

    @property
    def base_fingerprint(self) -> str:
        """Return what `checkpoints.fingerprint` gives for the base's folder."""
        return combine(self.base_hashes)


@dataclass(frozen=True)
class DeltaInfo:
    """A delta in numbers: the entries that it replaces, all weights, and the file's profile and size in bytes."""

    profile: str
    num_changed: int
    num_weights: int
    density: float
    num_tensors_touched: int
    num_tensors: int
    num_bytes: int
    base_fingerprint: str
    metadata: Mapping[str, str]


def noted_dtypes(dtypes: Iterable[torch.dtype]) -> dict[str, str]:
    """Return the metadata that say a base's dtypes: a GGUF base is converted to them when the delta is applied."""
    return {"base_dtypes": " ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))}


def write_delta(
    path: str | Path,
    *,
    indices: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    base_hashes: Mapping[str, str],
    metadata: Mapping[str, str],
    profile: sparse_file.Profile = "compact",
) -> None:
    """Write a delta to a temporary file, then rename it; `profile` as in `sparse_file`.

    indices: name -> sorted unique int32 [n]; values: name -> [n] in the base's dtype. shapes and base_hashes
    (`fingerprints.digests`, computed before training) have every tensor of the base.
    """
    assert indices.keys() == values.keys() and indices.keys() <= shapes.keys() == base_hashes.keys()
    touched = {name: where.int() for name, where in indices.items() if len(where)}
    delta = Delta(touched, {n: values[n].detach() for n in touched}, shapes, base_hashes, metadata)
    for name, where in touched.items():
        assert values[name].shape == where.shape
        sparse_file.check_indices(name, where, shapes[name], where=str(path))
    header = {
        "base_hashes": dict(base_hashes),
        "base_fingerprint": delta.base_fingerprint,
        "k": delta.num_changed,
        "density": delta.num_changed / max(delta.num_weights, 1),
        "metadata": dict(metadata),
    }
    content = sparse_file.SparseFile(dict(shapes), touched, delta.values, header)
    sparse_file.write(Path(path), "delta", content, column="values", profile=profile)


def read_delta(path: str | Path) -> Delta:
    """Read a file that `write_delta` wrote. Raises UserError unless it is a complete and valid delta.

    NaN and infinite values are kept, bit for bit, and you are warned about the first tensor with any.
    """
    content = sparse_file.read(Path(path), "delta", column="values")
    hashes, metadata = content.header.get("base_hashes"), content.header.get("metadata")
    if (
        not isinstance(hashes, dict)
        or hashes.keys() != content.shapes.keys()
        or not isinstance(metadata, dict)
    ):
        raise UserError(
            f"{path}: the header lacks base_hashes or metadata: the file is damaged, write it again"
        )
    delta = Delta(content.indices, content.column, content.shapes, hashes, metadata)
    if content.header.get("k") != delta.num_changed:
        found = f"{delta.num_changed} entries instead of {content.header.get('k')}"
        raise UserError(f"{path}: a tensor is missing, the file holds {found}: write it again")
    not_finite = first_not_finite(delta.values.items())
    if not_finite is not None:
        say(f"{path}: {not_finite}: a model to which this delta is applied gets such weights")
    return delta


def info(path: str | Path) -> DeltaInfo:
    """Return the numbers of the delta at `path`."""
    delta = read_delta(path)
    return DeltaInfo(
        profile=sparse_file.profile_of(Path(path)),
        num_changed=delta.num_changed,
        num_weights=delta.num_weights,
        density=delta.num_changed / max(delta.num_weights, 1),
        num_tensors_touched=len(delta.indices),
        num_tensors=len(delta.shapes),
        num_bytes=Path(path).stat().st_size,
        base_fingerprint=delta.base_fingerprint,
        metadata=delta.metadata,
    )
