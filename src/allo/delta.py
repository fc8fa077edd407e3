"""What alignment changed, and nothing else: a small file that turns one exact base into one exact model.

A delta is a sparse file with `<name>.indices` (int32) and `<name>.values`, the replacement values
in the weight's own dtype, not differences: applying it loses nothing to rounding. Its header has
the digest of every tensor of the base, touched or not, so that a wrong base is always refused.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from allo.checkpoints import Checkpoint, check_same_layout, write_like
from allo.console import track
from allo.core import sparse_file
from allo.core.fingerprints import Digest, as_bits, combine
from allo.core.places import scatter
from allo.errors import UserError


@dataclass(frozen=True, eq=False)
class Delta:
    """`indices` and `values` of touched tensors; `shapes` and `base_hashes` of every tensor.

    `base_hashes` are `fingerprints.digests`. `metadata` may say how the weights were selected.
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
    def base_fingerprint(self) -> str:
        """Equal to `checkpoints.fingerprint` of the base's folder."""
        return combine(self.base_hashes)


@dataclass(frozen=True)
class DeltaInfo:
    """A delta in numbers: entries that it replaces, of all weights; size of the file in bytes."""

    num_changed: int
    num_weights: int
    density: float
    num_tensors_touched: int
    num_tensors: int
    num_bytes: int
    base_fingerprint: str
    metadata: Mapping[str, str]


def write_delta(
    path: str | Path,
    *,
    indices: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    base_hashes: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Write a delta, aside and then renamed.

    indices: name -> sorted unique int32 [n]; values: name -> [n] in the base's dtype. shapes and
    base_hashes (`fingerprints.digests`, taken before training) have every tensor of the base.
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
    sparse_file.write(Path(path), "delta", content, column="values")


def read_delta(path: str | Path) -> Delta:
    """Read what `write_delta` wrote. UserError when the file is not a whole and valid delta."""
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
    return delta


def info(path: str | Path) -> DeltaInfo:
    """The numbers of the delta at `path`."""
    delta = read_delta(path)
    return DeltaInfo(
        num_changed=delta.num_changed,
        num_weights=delta.num_weights,
        density=delta.num_changed / max(delta.num_weights, 1),
        num_tensors_touched=len(delta.indices),
        num_tensors=len(delta.shapes),
        num_bytes=Path(path).stat().st_size,
        base_fingerprint=delta.base_fingerprint,
        metadata=delta.metadata,
    )


def extract(base: str | Path, tuned: str | Path, out: str | Path) -> DeltaInfo:
    """Write to `out` the entries whose bits differ between two folders of one layout.

    Beside one piece of each folder, memory holds the delta itself. UserError when the folders
    cannot be read or differ in a tensor's name, shape or dtype.
    """
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    check_same_layout(before, after)
    # One growing buffer a kind: small tensors kept from every piece would pin the heap between large freed ones.
    positions, replacements = bytearray(), {entry.dtype: bytearray() for entry in before.stored.values()}
    starts: dict[str, tuple[int, int]] = {}
    counts: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for name, entry in track(before.stored.items(), "delta, extract", total=len(before.stored)):
        starts[name] = (len(positions), len(replacements[entry.dtype]))
        original, start = Digest(entry.dtype, entry.shape), 0
        for old, new in zip(before.pieces(name), after.pieces(name), strict=True):
            original.update(old)
            where = (as_bits(old) != as_bits(new)).nonzero().squeeze(1)
            positions += (where + start).int().numpy().data
            replacements[entry.dtype] += as_bits(new[where]).numpy().tobytes()
            start += len(old)
        hashes[name] = original.hexdigest()
        counts[name] = (len(positions) - starts[name][0]) // torch.int32.itemsize
    indices: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name in (name for name, count in counts.items() if count):
        dtype, (first, offset), count = before.stored[name].dtype, starts[name], counts[name]
        indices[name] = torch.frombuffer(positions, dtype=torch.int32, count=count, offset=first)
        values[name] = torch.frombuffer(replacements[dtype], dtype=dtype, count=count, offset=offset)
    metadata = {"made_by": "extract"}
    write_delta(
        out, indices=indices, values=values, shapes=before.shapes, base_hashes=hashes, metadata=metadata
    )
    return info(out)


def apply(base: str | Path, delta: str | Path, out: str | Path) -> None:
    """Write the folder `out`: `base` with the delta's entries replaced, bit for bit.

    Sharding and the other files (config, tokenizer) are the base's. UserError, and no `out`, when
    the base is not the very one that the delta was made from.
    """
    checkpoint, change = Checkpoint.open(base), read_delta(delta)
    sparse_file.check_same_shapes(change.shapes, checkpoint.shapes, what=f"the delta {delta}")
    for name, values in change.values.items():
        if values.dtype != checkpoint.stored[name].dtype:
            raise UserError(
                f"{delta} was made from a base in {values.dtype}, tensor {name} of {base} is"
                f" {checkpoint.stored[name].dtype}: apply it to the base in its original dtype"
            )

    def patched(name: str, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        next(bar)
        entry = checkpoint.stored[name]
        original, start = Digest(entry.dtype, entry.shape), 0
        for piece in pieces:
            original.update(piece)
            end = start + len(piece)
            if name in change.indices:
                first, last = torch.searchsorted(change.indices[name], torch.tensor([start, end])).tolist()
                where = change.indices[name][first:last].long() - start
                as_bits(piece)[where] = as_bits(change.values[name][first:last])
            start = end
            yield piece
        if original.hexdigest() != change.base_hashes[name]:
            raise UserError(
                f"{base} is not the base that {delta} was made from: the bits of tensor {name} differ;"
                f" the base's fingerprint must be {change.base_fingerprint}"
            )

    tensors = track(checkpoint.stored, "delta, apply", total=len(checkpoint.stored))
    with closing(tensors) as bar:
        write_like(checkpoint, out, patched)


def apply_to_model(named_parameters: Iterable[tuple[str, Tensor]], delta: Delta) -> None:
    """Replace the delta's entries in live tensors, in place; the caller has loaded the right base.

    Tensors may have another dtype or device than the values. UserError, and nothing changed, when
    a touched tensor is absent, has another shape, or has a dtype that would round the values.
    """
    tensors = dict(named_parameters)
    for name, values in delta.values.items():
        if name not in tensors:
            raise UserError(f"the delta was made for another model: this one has no tensor {name}")
        tensor = tensors[name]
        if tuple(tensor.shape) != tuple(delta.shapes[name]):
            found = f"{list(delta.shapes[name])} there, {list(tensor.shape)} in this model"
            raise UserError(f"the delta was made for another model: tensor {name} is {found}")
        if torch.promote_types(tensor.dtype, values.dtype) != tensor.dtype:
            raise UserError(
                f"the delta's values are {values.dtype}: tensor {name} of the model is {tensor.dtype} and"
                f" would round them; load the model in {values.dtype}"
            )
    for name, values in delta.values.items():
        data = tensors[name].data
        scatter(data, delta.indices[name].to(data.device), values.to(data.device))
