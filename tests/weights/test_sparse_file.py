"""One format in two profiles: the same content, small to keep or plain to map into memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from allo.errors import UserError
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from allo.weights.sparse_file import SCHEMA, Profile, SparseFile, read, write

PROFILES: tuple[Profile, ...] = ("compact", "interop")
SHAPES = {"a.w": (300, 70), "b": (5,), "untouched": (4, 4), "scalar": (), "none": (0, 3)}
# A compact delta of bf16 at 5%, over the full bf16 checkpoint: the target of the design.
SHARE_AT_5_PERCENT = 0.075


def content(dtype: torch.dtype = torch.bfloat16) -> SparseFile:
    generator = torch.Generator().manual_seed(0)
    chosen = (torch.rand(21_000, generator=generator) < 0.05).nonzero().squeeze(1).int()
    indices = {"a.w": chosen, "b": torch.tensor([0, 4], dtype=torch.int32), "scalar": torch.zeros(1).int()}
    column = {
        name: torch.randint(0, 2, where.shape, generator=generator).to(dtype)
        for name, where in indices.items()
    }
    return SparseFile(shapes=SHAPES, indices=indices, column=column, header={"metadata": {"from": "here"}})


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool]
)
def test_what_is_written_is_read_in_either_profile(
    tmp_path: Path, profile: Profile, dtype: torch.dtype
) -> None:
    path, whole = tmp_path / "file.safetensors", content(dtype)
    write(path, "delta", whole, column="values", profile=profile)
    found = read(path, "delta", column="values")
    assert found.shapes == whole.shapes and found.header == whole.header
    for kept, original in ((found.indices, whole.indices), (found.column, whole.column)):
        assert kept.keys() == original.keys()
        assert all(
            torch.equal(kept[name].view(torch.uint8), original[name].view(torch.uint8)) for name in kept
        )


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for profile in PROFILES:
        backwards = content()
        for part in (backwards.indices, backwards.column):
            part.update({name: part.pop(name) for name in reversed(list(part))})
        for name, some in (("one", content()), ("two", backwards)):
            write(tmp_path / name, "delta", some, column="values", profile=profile)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_file_without_entries_is_read(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "file.safetensors"
    ParamMask({}, shapes=SHAPES).save(path, profile=profile)
    assert ParamMask.load(path).indices == {}
    ParamMask({"b": torch.empty(0, dtype=torch.int32)}, shapes=SHAPES).save(path, profile=profile)
    assert ParamMask.load(path).num_selected == 0


def test_interop_is_what_safetensors_reads_and_each_part_lies_aligned(tmp_path: Path) -> None:
    """int32 `<name>.indices` and `<name>.values`, mapped from the file without a copy."""
    path, whole = tmp_path / "delta.safetensors", content()
    write(path, "delta", whole, column="values", profile="interop")
    loaded = load_file(path)
    assert loaded.keys() == {f"{name}.{part}" for name in whole.indices for part in ("indices", "values")}
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    mapped = np.memmap(path, mode="r")
    for key, entry in json.loads(raw[8:start]).items():
        if key == "__metadata__":
            continue
        name, part = key.rsplit(".", 1)
        width = {"indices": 4, "values": 2}[part]
        first, last = entry["data_offsets"]
        assert (start + first) % width == 0
        original = {"indices": whole.indices, "values": whole.column}[part][name]
        bits = original.view({4: torch.int32, 2: torch.int16}[width]).numpy()
        np.testing.assert_array_equal(mapped[start + first : start + last].view(bits.dtype), bits)


def test_a_patch_as_vllm_takes_it_applies_in_place(tmp_path: Path) -> None:
    """The rule of `SparseWeightPatch(name, indices, values)`: a flat index_copy into the parameter."""
    path, whole = tmp_path / "delta.safetensors", content()
    write(path, "delta", whole, column="values", profile="interop")
    tensor = torch.full((300, 70), 2.0, dtype=torch.bfloat16)
    with safe_open(path, framework="pt") as file:
        indices, values = (file.get_tensor(f"a.w.{part}") for part in ("indices", "values"))
    tensor.view(-1).index_copy_(0, indices.long(), values)
    assert torch.equal(tensor.view(-1)[whole.indices["a.w"].long()], whole.column["a.w"])
    assert int((tensor == 2).sum()) == tensor.numel() - len(indices)


def test_compact_is_the_default_of_what_a_run_keeps(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(200_000, generator=generator)
    top = ImportanceMap.top(lambda: [("w", scores)], density=0.05, shapes={"w": (200_000,)}, metadata={})
    sizes = {}
    for profile in PROFILES:
        top.save(tmp_path / profile, profile=profile)
        assert torch.equal(ImportanceMap.load(tmp_path / profile).indices["w"], top.indices["w"])
        sizes[profile] = (tmp_path / profile).stat().st_size
    top.save(tmp_path / "default")
    assert (tmp_path / "default").read_bytes() == (tmp_path / "compact").read_bytes()
    assert sizes["interop"] - sizes["compact"] > 3 * len(top.indices["w"])


def test_a_compact_delta_is_a_small_share_of_the_checkpoint(tmp_path: Path) -> None:
    size = 1_000_000
    generator = torch.Generator().manual_seed(2)
    where = (torch.rand(size, generator=generator) < 0.05).nonzero().squeeze(1).int()
    values = torch.randn(len(where), generator=generator).bfloat16()
    whole = SparseFile({"w": (size,)}, {"w": where}, {"w": values}, {})
    write(tmp_path / "delta", "delta", whole, column="values")
    assert (tmp_path / "delta").stat().st_size <= SHARE_AT_5_PERCENT * size * torch.bfloat16.itemsize


def test_files_of_schema_1_are_still_read(tmp_path: Path) -> None:
    header = {"kind": "mask", "schema": 1, "shapes": {"w": [2, 3]}, "metadata": {}}
    indices = torch.tensor([1, 5], dtype=torch.int32)
    save_file({"w.indices": indices}, tmp_path / "old", metadata={"allo": json.dumps(header)})
    assert torch.equal(ParamMask.load(tmp_path / "old").indices["w"], indices)


def test_an_unknown_profile_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="profile 'zip' is unknown: choose compact or interop"):
        write(tmp_path / "file", "delta", content(), column="values", profile="zip")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_byte_is_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    ParamMask({"a.w": content().indices["a.w"]}, shapes=SHAPES).save(path)
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 4
    path.write_bytes(raw)
    with pytest.raises(
        UserError, match=r"mask\.safetensors: tensor a\.w: the gap code is truncated, damaged"
    ):
        ParamMask.load(path)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (torch.zeros(3, dtype=torch.uint8), "tensor w: the gap code is truncated"),
        (
            torch.zeros(3, dtype=torch.int32),
            r"w\.gaps must be a one-dimensional uint8 tensor, found torch\.int32",
        ),
        (torch.zeros(3, 3, dtype=torch.uint8), r"w\.gaps must be .* found torch\.uint8 of shape \[3, 3\]"),
    ],
)
def test_gaps_of_another_kind_are_refused(tmp_path: Path, stream: Tensor, message: str) -> None:
    header = {"kind": "mask", "schema": SCHEMA, "profile": "compact", "shapes": {"w": [2, 3]}, "metadata": {}}
    save_file({"w.gaps": stream}, tmp_path / "file", metadata={"allo": json.dumps(header)})
    with pytest.raises(UserError, match=message):
        ParamMask.load(tmp_path / "file")


@pytest.mark.parametrize("schema", [2, 3])
def test_gaps_in_the_code_of_an_older_version_are_refused_by_name(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "mask.safetensors"
    header = {"kind": "mask", "schema": schema, "profile": "compact", "shapes": {"w": [2, 3]}, "metadata": {}}
    save_file({"w.gaps": torch.zeros(9, dtype=torch.uint8)}, path, metadata={"allo": json.dumps(header)})
    with pytest.raises(
        UserError, match=rf"mask\.safetensors has schema {schema}, .* Rice codes.* repeat the command"
    ):
        ParamMask.load(path)
