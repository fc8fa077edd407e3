"""Merging of two deltas on one base: all changes are kept, and the second delta wins."""

from dataclasses import dataclass
from pathlib import Path

import torch

from allo.delta.file import Delta, DeltaInfo, info, read_delta, write_delta
from allo.errors import UserError
from allo.weights.fingerprints import as_bits


@dataclass(frozen=True)
class MergeInfo:
    """The merged delta; `num_shared` entries are in both deltas, `num_overruled` of them with different values."""

    num_shared: int
    num_overruled: int
    merged: DeltaInfo


def merge(first: str | Path, second: str | Path, out: str | Path) -> MergeInfo:
    """Write to `out` the delta that applies `first`, then `second`.

    Metadata are kept if both agree. Raises UserError if the two have different bases.
    """
    one, two = read_delta(first), read_delta(second)
    _check_same_base(one, two, where=f"{first} and {second}")
    indices, values = {**one.indices, **two.indices}, {**one.values, **two.values}
    num_shared = num_overruled = 0
    for name in one.indices.keys() & two.indices.keys():
        both = torch.isin(one.indices[name], two.indices[name], assume_unique=True)
        again = torch.isin(two.indices[name], one.indices[name], assume_unique=True)
        overruled = as_bits(one.values[name][both]) != as_bits(two.values[name][again])
        num_shared += len(overruled)
        num_overruled += int(overruled.sum())
        indices[name], order = torch.cat((one.indices[name][~both], two.indices[name])).sort()
        values[name] = torch.cat((one.values[name][~both], two.values[name]))[order]
    metadata = dict(one.metadata.items() & two.metadata.items()) | {"made_by": "merge"}
    write_delta(
        out,
        indices=indices,
        values=values,
        shapes=one.shapes,
        base_hashes=one.base_hashes,
        metadata=metadata,
    )
    return MergeInfo(num_shared, num_overruled, info(out))


def _check_same_base(one: Delta, two: Delta, *, where: str) -> None:
    """Raise UserError naming the first tensor whose bits differ between the two bases."""
    for name in [*one.base_hashes, *(name for name in two.base_hashes if name not in one.base_hashes)]:
        if one.base_hashes.get(name) != two.base_hashes.get(name):
            raise UserError(
                f"{where} were made from two bases: tensor {name} differs; merge deltas of one base only"
                f" (fingerprints {one.base_fingerprint} and {two.base_fingerprint})"
            )
