"""A delta between two models: extracting it, and applying it to a folder or to tensors in memory."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from allo.console import track
from allo.delta.file import Delta, DeltaInfo, info, noted_dtypes, read_delta, write_delta
from allo.errors import UserError
from allo.weights import sparse_file
from allo.weights.checkpoints import Checkpoint, check_same_layout, write_like
from allo.weights.fingerprints import Digest, as_bits
from allo.weights.finite import check_finite
from allo.weights.layout import Layout, saved_tensors
from allo.weights.places import Patch, places_of
from allo.weights.shards import is_shard, own_interval, own_rows, span, within


def extract(
    base: str | Path, tuned: str | Path, out: str | Path, *, profile: sparse_file.Profile = "compact"
) -> DeltaInfo:
    """Write to `out` the entries whose bits differ between two folders of one layout.

    Memory holds the delta and one piece of each folder. Raises UserError if the folders cannot be read or differ in a
    tensor's name, shape or dtype, and for an unknown `profile`.
    """
    sparse_file.check_profile(profile)
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    check_same_layout(before, after)
    # One growing buffer per kind: small tensors kept from every piece would pin the heap between large freed ones.
    positions, replacements = bytearray(), {entry.dtype: bytearray() for entry in before.stored.values()}
    starts: dict[str, tuple[int, int]] = {}
    counts: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for name, entry in track(
        before.stored.items(), "delta, extract", total=len(before.stored), unit="tensor"
    ):
        starts[name] = (len(positions), len(replacements[entry.dtype]))
        original, start = Digest(entry.dtype, entry.shape), 0
        for old, new in zip(before.pieces(name), after.pieces(name), strict=True):
            original.update(old)
            where = (as_bits(old) != as_bits(new)).nonzero().squeeze(1)
            sparse_file.check_reach(name, start + int(where[-1]) + 1 if len(where) else 0)
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
    metadata = {"made_by": "extract", **noted_dtypes(entry.dtype for entry in before.stored.values())}
    write_delta(
        out,
        indices=indices,
        values=values,
        shapes=before.shapes,
        base_hashes=hashes,
        metadata=metadata,
        profile=profile,
    )
    return info(out)


def apply(base: str | Path, delta: str | Path | Delta, out: str | Path) -> None:
    """Write the folder `out`: `base` with the entries of a delta, or of its file, replaced, bit for bit.

    Sharding and the other files (config, tokenizer) are the base's. Raises UserError, and writes no `out`, unless the
    delta was made from exactly this base.
    """
    checkpoint, change = Checkpoint.open(base), delta if isinstance(delta, Delta) else read_delta(delta)
    named = "the change" if isinstance(delta, Delta) else f"the delta {delta}"
    check_layout(change, checkpoint, what=named)

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
        check_bits(
            name, original.hexdigest(), change, where=f"{base} is not the base that {named} was made from"
        )

    tensors = track(checkpoint.stored, "delta, apply", total=len(checkpoint.stored), unit="tensor")
    with closing(tensors) as bar:
        write_like(checkpoint, out, patched)


def check_layout(change: Delta, base: Checkpoint, *, what: str) -> None:
    """Raise UserError naming the first tensor with another shape or, if the delta touches it, another dtype."""
    sparse_file.check_same_shapes(change.shapes, base.shapes, what=what)
    for name, values in change.values.items():
        if values.dtype != base.stored[name].dtype:
            raise UserError(
                f"{what} was made from a base in {values.dtype}, but tensor {name} of {base.folder} is"
                f" {base.stored[name].dtype}: apply it to the base in its original dtype"
            )


def check_bits(name: str, digest: str, change: Delta, *, where: str) -> None:
    """Raise UserError if the digest of the base's tensor is not the one that the delta expects."""
    if digest != change.base_hashes[name]:
        raise UserError(
            f"{where}: the bits of tensor {name} differ; the base's fingerprint must be {change.base_fingerprint}"
        )


def apply_to_model(tensors: nn.Module | Iterable[tuple[str, Tensor]], delta: Delta) -> None:
    """Replace the delta's entries in live tensors, in place; see `patch_of`."""
    patch_of(tensors, delta).exchange()


def patch_of(tensors: nn.Module | Iterable[tuple[str, Tensor]], delta: Delta) -> Patch:
    """Return what puts a delta into a model, or into tensors under their names on disk, and takes it out again.

    The caller has loaded the right base. Tensors may have another dtype or device than the values. Of a sharded model, the
    patch has the entries in this rank's rows. Raises UserError if a touched tensor is absent, has another shape, or has a
    dtype that would round the values. Also for NaN and infinite values, and if two copies of a tied weight would differ.
    """
    check_finite(
        delta.values.items(),
        where="the delta",
        advice="A model with such weights is not run: make the delta again.",
    )
    if isinstance(tensors, nn.Module):
        layout, live = Layout.whole(tensors).spelled_as(delta.shapes), saved_tensors(tensors)
    else:
        live = dict(tensors)
        layout = Layout.plain(live)
    shapes, copies = layout.shapes, layout.copies(delta.shapes.keys())
    for name, first in copies.items():
        sides = [(delta.indices.get(each), delta.values.get(each)) for each in (name, first)]
        if not all(_equal(one, other) for one, other in zip(*sides, strict=True)):
            raise UserError(
                f"the delta changes {first} and {name} differently, which are one weight in this model: it was made for an "
                "untied model"
            )
    own = {name: where for name, where in delta.indices.items() if name not in copies}
    for name in own:
        if name not in shapes:
            raise UserError(f"the delta was made for another model: this one has no tensor {name}")
        if shapes[name] != tuple(delta.shapes[name]):
            found = f"{list(delta.shapes[name])} there, {list(shapes[name])} in this model"
            raise UserError(f"the delta was made for another model: tensor {name} is {found}")
    indices, values = layout.live(own, delta.values)
    for name, new in values.items():
        if torch.promote_types(live[name].dtype, new.dtype) != live[name].dtype:
            raise UserError(
                f"the delta's values are {new.dtype}, but tensor {name} of the model is {live[name].dtype} and would "
                f"round them; load the model in {new.dtype}"
            )
    for name, where in indices.items():
        if is_shard(live[name]):
            interval = own_interval(live[name])
            values[name] = values[name][span(where, interval)].clone()  # without the memory of the others
            indices[name] = within(where, interval)
    rows = {name: own_rows(live[name]) for name in indices}
    places = {
        name: places_of(where.to(rows[name].device), rows[name].shape) for name, where in indices.items()
    }
    return Patch(rows, places, values, tensors if isinstance(tensors, nn.Module) else None)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
