"""Folders of weights: read as safetensors reads them, refused with reasons, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from allo.errors import UserError
from allo.weights import checkpoints
from allo.weights.checkpoints import INDEX, Checkpoint, check_same_layout, fingerprint
from allo.weights.fingerprints import fingerprint_tensors
from allo.weights.group_selection import select_groups
from allo.weights.mask_files import mask_from_checkpoints
from allo.weights.param_mask import ParamMask
from allo.weights.selection import select
from commands import run_printed

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int8, torch.bool]


def weights(seed: int = 0) -> dict[str, Tensor]:
    """One small tensor of each dtype, an empty one and a scalar."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        f"layers.{i}.{str(dtype)[6:]}.weight": (torch.randn(7, 5, generator=generator) * 3).to(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    return {**made, "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5, dtype=torch.bfloat16)}


def write_folder(folder: Path, tensors: dict[str, Tensor], *, num_shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(num_shards):
        part = {name: tensors[name] for name in list(tensors)[shard::num_shards]}
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("piece", [4, 1 << 20])
def test_reads_what_safetensors_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shards: int, piece: int
) -> None:
    monkeypatch.setattr(checkpoints, "PIECE", piece)
    tensors = weights()
    checkpoint = Checkpoint.open(write_folder(tmp_path, tensors, num_shards=num_shards))
    assert checkpoint.shapes == {name: tuple(tensors[name].shape) for name in checkpoint.stored}
    assert checkpoint.stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert checkpoint.stored[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)
        assert all(len(part) <= piece for part in checkpoint.pieces(name))


def test_fingerprints_of_folder_shards_and_live_tensors_agree(tmp_path: Path) -> None:
    tensors = weights()
    one = fingerprint(write_folder(tmp_path / "one", tensors))
    assert one == fingerprint(write_folder(tmp_path / "many", tensors, num_shards=4))
    assert one == fingerprint_tensors(reversed(list(tensors.items())))
    strided = tensors["layers.0.bfloat16.weight"].t().contiguous().t()
    assert one == fingerprint_tensors({**tensors, "layers.0.bfloat16.weight": strided}.items())


def test_a_fingerprint_sees_every_bit_shape_dtype_and_name() -> None:
    zero = torch.zeros(4, dtype=torch.bfloat16)
    variants = [
        {"w": zero},
        {"w": -zero},
        {"w": zero.half()},
        {"w": zero.view(2, 2)},
        {"v": zero},
        {"w": zero, "v": zero[:0]},
    ]
    assert len({fingerprint_tensors(variant.items()) for variant in variants}) == len(variants)


def test_pickled_weights_are_refused_with_a_command_that_converts_them(tmp_path: Path) -> None:
    folder = tmp_path / "a folder's name"
    folder.mkdir()
    shared = torch.randn(3, 3)
    torch.save({"tied": shared, "head": shared}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"t": shared.t()}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(UserError, match="convert them") as refusal:
        Checkpoint.open(folder)
    run_printed(str(refusal.value).splitlines()[-1])
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.read("head"), shared) and torch.equal(checkpoint.read("t"), shared.t())


def test_folders_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Checkpoint.open(tmp_path / "absent")
    with pytest.raises(UserError, match=f"neither model.safetensors nor {INDEX}"):
        Checkpoint.open(tmp_path)
    folder = write_folder(tmp_path / "sharded", weights(), num_shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    for length in (0, 4, 50, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{shard.name} is truncated"):
            Checkpoint.open(folder)
    shard.write_bytes(whole + b"x")
    with pytest.raises(UserError, match=shard.name):
        Checkpoint.open(folder)
    save_file({"other": torch.ones(1)}, shard)
    with pytest.raises(UserError, match=f"{shard.name}: tensor .* is missing"):
        Checkpoint.open(folder)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: this shard is missing"):
        Checkpoint.open(folder)
    (folder / INDEX).write_text('{"weight_map": {"w": "../../elsewhere.safetensors"}}')
    with pytest.raises(UserError, match="no valid weight_map"):
        Checkpoint.open(folder)


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    for entry in (
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F77", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
    ):
        raw = json.dumps({"w": entry}).encode()
        (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
        with pytest.raises(UserError, match=r"model\.safetensors"):
            Checkpoint.open(tmp_path)


def test_a_mask_is_not_a_checkpoint(tmp_path: Path) -> None:
    ParamMask.full({"w": (3,)}).save(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a checkpoint"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scalar": torch.ones(1, dtype=torch.bfloat16)}, r"scalar is BF16 \[\] in the first and BF16 \[1\]"),
        ({"scalar": torch.tensor(1.0)}, r"scalar is BF16 \[\] in the first and F32 \[\]"),
        ({"more": torch.ones(2)}, r"more is absent in the first and F32 \[2\]"),
    ],
)
def test_the_first_difference_of_two_models_is_named(
    tmp_path: Path, change: dict[str, Tensor], message: str
) -> None:
    one = Checkpoint.open(write_folder(tmp_path / "one", weights()))
    two = Checkpoint.open(write_folder(tmp_path / "two", {**weights(), **change}))
    check_same_layout(one, Checkpoint.open(write_folder(tmp_path / "same", weights(1), num_shards=2)))
    with pytest.raises(UserError, match=message):
        check_same_layout(one, two)


@pytest.mark.parametrize("criterion", ["delta", "bottom", "magnitude", "random"])
def test_a_mask_from_two_folders_is_the_selection_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    monkeypatch.setattr(checkpoints, "PIECE", 8)
    base, tuned = weights(0), weights(1)
    one = write_folder(tmp_path / "one", base)
    two = write_folder(tmp_path / "two", tuned, num_shards=3)
    out = tmp_path / "mask.safetensors"
    mask = mask_from_checkpoints(one, two, density=0.25, criterion=criterion, out=out)
    floating = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    assert mask.shapes == {name: tuple(tensor.shape) for name, tensor in floating.items()}
    assert mask.num_selected == round(0.25 * mask.num_weights) == 35
    change = {name: (tuned[name].float() - floating[name].float()).abs() for name in floating}
    oracle = {"delta": change, "magnitude": {name: floating[name].float().abs() for name in floating}}
    if criterion == "bottom":  # all changes here are distinct from zero and larger than 1e-6
        oracle["bottom"] = {name: 1 / (change[name].double() + 1e-12) for name in change}
        assert min(float(c.min()) for c in change.values() if c.numel()) >= 0
        kept = torch.cat([change[n].reshape(-1)[i.long()] for n, i in mask.indices.items()])
        rest = torch.cat([c.reshape(-1) for c in change.values()]).sort().values[: len(kept)]
        assert torch.equal(kept.sort().values, rest)
    elif criterion != "random":
        direct = select(lambda: oracle[criterion].items(), k=35)
        assert all(torch.equal(mask.indices[name], direct[name]) for name in direct)
    loaded = ParamMask.load(out)
    assert all(torch.equal(loaded.indices[name], mask.indices[name]) for name in mask.indices)
    assert loaded.metadata["base_fingerprint"] == fingerprint(one)
    assert loaded.metadata["criterion"] == criterion and loaded.metadata["density"] == "0.25"


@pytest.mark.parametrize("granularity", ["row", "column", "block(2)"])
def test_a_mask_of_whole_groups_is_the_selection_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: str
) -> None:
    monkeypatch.setattr(checkpoints, "PIECE", 8)
    base, tuned = weights(0), weights(1)
    one = write_folder(tmp_path / "one", base)
    two = write_folder(tmp_path / "two", tuned, num_shards=3)
    out = tmp_path / "mask.safetensors"
    mask = mask_from_checkpoints(one, two, density=0.5, granularity=granularity, out=out)
    change = {
        name: (tuned[name].float() - tensor.float()).abs()
        for name, tensor in base.items()
        if tensor.is_floating_point()
    }
    direct = select_groups(lambda: change.items(), k=70, shapes=mask.shapes, granularity=granularity)
    loaded = ParamMask.load(out)
    assert loaded.indices.keys() == direct.keys()
    assert all(torch.equal(loaded.indices[name], direct[name]) for name in direct)
    assert loaded.metadata["granularity"] == granularity and loaded.metadata["num_asked"] == "70"


def test_identical_folders_give_exactly_k_and_a_warning(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", {"w": torch.randn(400)})
    with pytest.warns(UserWarning, match="only 0 weights differ .* 40 are to be selected"):
        mask = mask_from_checkpoints(folder, folder, density=0.1, out=tmp_path / "mask.safetensors")
    assert mask.num_selected == 40


def test_masks_that_cannot_be_made_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", {"w": torch.randn(400)})
    broken = write_folder(tmp_path / "two", {"w": torch.full((400,), torch.nan)})
    out = tmp_path / "mask.safetensors"
    for density in (0.0, 1.5, -1.0):
        with pytest.raises(UserError, match="density"):
            mask_from_checkpoints(folder, folder, density=density, out=out)
    with pytest.raises(UserError, match="'fisher' cannot be computed from two checkpoints"):
        mask_from_checkpoints(folder, folder, density=0.1, criterion="fisher", out=out)
    with pytest.raises(UserError, match="'rows' is none of weight, row, column"):
        mask_from_checkpoints(folder, folder, density=0.1, granularity="rows", out=out)
    with pytest.raises(UserError, match="'bottom' ranks single weights: granularity 'row' does not apply"):
        mask_from_checkpoints(folder, folder, density=0.1, criterion="bottom", granularity="row", out=out)
    with pytest.raises(UserError, match=r"tensor w, flat index 0: .*NaN"):
        mask_from_checkpoints(folder, broken, density=0.1, out=out)
    assert not out.exists()


LIMIT_KIB = 600 << 10
MEASURE = """
import sys
from allo.weights.mask_files import mask_from_checkpoints
mask_from_checkpoints(sys.argv[1], sys.argv[2], density=0.01, out=sys.argv[3])
# VmHWM: ru_maxrss would begin with the parent's.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_two_gigabytes_of_shards_are_masked_in_600_megabytes(tmp_path: Path) -> None:
    """2 x 2 GiB of bf16, two shards each, one tensor of 512 MiB: peak resident memory, torch included."""
    for folder, step in (("base", 0.0), ("tuned", 2**-8)):
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(1 << 26, generator=generator)
        for part in block.split(1 << 22) if step else ():
            part += step * torch.rand(len(part), generator=generator)
        bits = block.bfloat16()
        names = {f"layers.{i}.w": bits.roll(i) for i in range(4)}
        embedding = {"embed.w": torch.cat([bits] * 4)}
        rest = {f"layers.{i}.w": bits.roll(i) for i in range(4, 12)}
        path = tmp_path / folder
        path.mkdir()
        weight_map = {}
        for number, shard in enumerate((names, {**embedding, **rest})):
            save_file(shard, path / f"{number}.safetensors")
            weight_map |= dict.fromkeys(shard, f"{number}.safetensors")
        (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert sum(file.stat().st_size for file in path.iterdir()) > 2 << 30
    arguments = [str(tmp_path / name) for name in ("base", "tuned", "mask.safetensors")]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
    )
    print(f"peak resident memory: {int(run.stdout) // 1024} MiB")
    assert int(run.stdout) < LIMIT_KIB
    assert ParamMask.load(arguments[2]).density == pytest.approx(0.01, abs=1e-9)


def test_what_safetensors_loads_is_what_a_copy_holds(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", weights(), num_shards=3)
    (base / "config.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"old weights")
    checkpoints.write_like(Checkpoint.open(base), tmp_path / "out", lambda name, pieces: pieces)
    assert {path.name for path in base.iterdir()} - {path.name for path in (tmp_path / "out").iterdir()} == {
        "pytorch_model.bin"
    }
    for file in base.glob("*.safetensors"):
        copy = load_file(tmp_path / "out" / file.name)
        assert all(torch.equal(copy[name], tensor) for name, tensor in load_file(file).items())
