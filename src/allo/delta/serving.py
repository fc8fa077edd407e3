"""A delta for a running vLLM server, in the layout of its sparse weight patches.

vLLM takes, for each tensor under its name in the checkpoint, flat int32 indices that increase strictly, and the new
values in the tensor's dtype. The profile "interop" stores exactly these. A patch is a delta whose base is the model
that the server has now.
"""

from pathlib import Path

from torch import Tensor

from allo.console import track
from allo.delta.file import Delta, DeltaInfo, info, read_delta, write_delta
from allo.delta.patch import check_bits, check_layout
from allo.errors import UserError
from allo.weights import sparse_file
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import as_bits, digests
from allo.weights.finite import check_finite
from allo.weights.places import gather, scatter


def export_patch(
    base: str | Path, delta: str | Path, out: str | Path, *, served: str | Path | None = None
) -> DeltaInfo:
    """Write to `out` the patch that turns the served model into the one that `delta` makes of the folder `base`.

    The server has `base`, or what the delta `served` made of it. Entries that have the right bits already are left out.
    Memory holds the patch and three copies of one tensor. Raises UserError if a delta was made from another base, if there
    is nothing to send, and for values that vLLM does not take: integers, NaN and infinite ones.
    """
    checkpoint = Checkpoint.open(base)
    new, *old = deltas = [read_delta(place) for place in (delta, served) if place is not None]
    places = [str(delta), str(served)]
    for place, change in zip(places, deltas, strict=False):
        check_layout(change, checkpoint, what=f"the delta {place}")
    indices: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    for name in track(checkpoint.stored, "delta, export", total=len(checkpoint.stored), unit="tensor"):
        tensor = checkpoint.read(name) if any(name in change.indices for change in deltas) else None
        hashes[name] = checkpoint.digest(name) if tensor is None else digests([(name, tensor)])[name]
        for place, change in zip(places, deltas, strict=False):
            check_bits(name, hashes[name], change, where=f"{base} is not the base that {place} was made from")
        if tensor is None:
            continue
        after = _changed(tensor, name, new)
        for change in old:
            tensor = _changed(tensor, name, change)
            hashes[name] = digests([(name, tensor)])[name]
        where = (as_bits(tensor) != as_bits(after)).reshape(-1).nonzero().squeeze(1)
        if len(where):
            sparse_file.check_reach(name, int(where[-1]) + 1)
            indices[name], values[name] = where.int(), gather(after, where)
    _check_sendable(values, what=str(delta))
    write_delta(
        out,
        indices=indices,
        values=values,
        shapes=checkpoint.shapes,
        base_hashes=hashes,
        metadata={**new.metadata, "made_by": "export"},
        profile="interop",
    )
    return info(out)


def _changed(tensor: Tensor, name: str, change: Delta) -> Tensor:
    """Return a copy of the base's tensor with a delta's entries in place."""
    tensor = tensor.clone()
    if name in change.indices:
        scatter(tensor, change.indices[name], change.values[name])
    return tensor


def _check_sendable(values: dict[str, Tensor], *, what: str) -> None:
    if not values:
        raise UserError(f"{what}: the served model has these weights already: there is nothing to send")
    for name, new in values.items():
        if not new.is_floating_point():
            raise UserError(
                f"{what} changes tensor {name}, which is {new.dtype}: vLLM patches floating-point tensors alone. Write the "
                "whole model with allo delta apply, and reload it"
            )
    check_finite(
        values.items(), where=what, advice="vLLM takes NaN for an unchanged weight: make the delta again."
    )
