"""A delta turns its base, and no other, into the tuned model, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from allo.delta import apply, apply_to_model, extract, info, read_delta, write_delta
from allo.errors import UserError
from allo.weights import checkpoints
from allo.weights.checkpoints import INDEX, Checkpoint, fingerprint
from allo.weights.fingerprints import as_bits, digests, fingerprint_tensors
from allo.weights.sparse_file import Profile

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int8, torch.uint8]


def folder_of(path: Path, tensors: dict[str, Tensor], *, num_shards: int = 1) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"made": "by a test"}')
    if num_shards == 1:
        save_file(tensors, path / "model.safetensors")
        return path
    weight_map = {name: f"model-{i % num_shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, path / file)
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return path


def models() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A base of many dtypes and a model that differs in a few entries of all but one tensor."""
    generator = torch.Generator().manual_seed(0)
    base = {str(dtype)[6:]: (torch.randn(9, 8, generator=generator) * 5).to(dtype) for dtype in DTYPES}
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for name in tuned:
        tuned[name].view(-1)[::13] += 1
    for tensors in (base, tuned):
        tensors["untouched"] = torch.ones(5, 5)
        tensors["empty"] = torch.empty(0, 3)
    return base, tuned


def assert_same_bits(folder: Path, tensors: dict[str, Tensor]) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype and torch.equal(as_bits(read), as_bits(tensor)), name


@pytest.mark.invariant(
    "A delta applied to its base is the tuned checkpoint, bit for bit; another base is refused."
)
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("piece", [5, 1 << 20])
def test_applying_what_was_extracted_gives_the_tuned_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shards: int, piece: int
) -> None:
    monkeypatch.setattr(checkpoints, "PIECE", piece)
    base, tuned = models()
    one = folder_of(tmp_path / "base", base, num_shards=num_shards)
    two = folder_of(tmp_path / "tuned", tuned)
    found = extract(one, two, tmp_path / "delta.safetensors")
    apply(one, tmp_path / "delta.safetensors", tmp_path / "out")
    assert_same_bits(tmp_path / "out", tuned)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in one.iterdir()}
    assert fingerprint(tmp_path / "out") == fingerprint(two)
    num_changed = sum(int((base[name] != tuned[name]).sum()) for name in base)
    assert (found.num_changed, found.num_tensors_touched, found.num_tensors) == (num_changed, 7, 9)
    assert found.base_fingerprint == fingerprint(one)
    assert found == info(tmp_path / "delta.safetensors")


BITS = {
    torch.bfloat16: (0x0000, 0x8000, 0x7FC0, 0x7FC1, 0xFF81, 0x7F80, 0x0001),
    torch.float16: (0x0000, 0x8000, 0x7E00, 0x7E01, 0xFC01, 0x7C00, 0x0001),
    torch.float32: (0x0, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFF800001, 0x7F800000, 0x1),
}


@pytest.mark.parametrize("dtype", BITS)
def test_signed_zeros_and_nan_payloads_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every special value replaced by every other: the values compare equal or unordered, the bits differ."""
    wide = torch.int16 if dtype.itemsize == 2 else torch.int32
    modulus = 1 << 8 * dtype.itemsize
    signed = [bits - modulus if bits >= modulus // 2 else bits for bits in BITS[dtype]]
    grid = torch.cartesian_prod(torch.tensor(signed, dtype=wide), torch.tensor(signed, dtype=wide))
    base, tuned = ({"w": grid[:, side].contiguous().view(dtype)} for side in (0, 1))
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    found = extract(one, two, tmp_path / "delta.safetensors")
    assert found.num_changed == len(signed) * (len(signed) - 1)
    apply(one, tmp_path / "delta.safetensors", tmp_path / "out")
    assert_same_bits(tmp_path / "out", tuned)


@given(st.lists(st.tuples(st.integers(-(2**15), 2**15 - 1), st.integers(-(2**15), 2**15 - 1)), max_size=30))
@settings(max_examples=30, deadline=None)
def test_any_bits_survive(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]]) -> None:
    tmp_path = tmp_path_factory.mktemp("bits")
    columns = torch.tensor(pairs, dtype=torch.int16).reshape(-1, 2)
    base, tuned = ({"w": columns[:, side].contiguous().view(torch.bfloat16)} for side in (0, 1))
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    extract(one, two, tmp_path / "delta.safetensors")
    apply(one, tmp_path / "delta.safetensors", tmp_path / "out")
    assert_same_bits(tmp_path / "out", tuned)


def test_identical_folders_give_an_empty_delta(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "base", models()[0])
    assert extract(one, one, tmp_path / "delta.safetensors").num_changed == 0
    apply(one, tmp_path / "delta.safetensors", tmp_path / "out")
    assert_same_bits(tmp_path / "out", models()[0])


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"base", "tuned", "other", "delta.safetensors"}


@pytest.mark.invariant(
    "A delta applied to its base is the tuned checkpoint, bit for bit; another base is refused."
)
@pytest.mark.parametrize("name", ["bfloat16", "untouched"])
def test_another_base_is_refused_even_where_the_delta_touches_nothing(tmp_path: Path, name: str) -> None:
    base, tuned = models()
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    extract(one, two, tmp_path / "delta.safetensors")
    other = {key: tensor.clone() for key, tensor in base.items()}
    other[name].view(-1)[4] += 1
    with pytest.raises(UserError, match=f"not the base .* the bits of tensor {name} differ"):
        apply(folder_of(tmp_path / "other", other), tmp_path / "delta.safetensors", tmp_path / "out")
    assert left_behind(tmp_path) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bfloat16": torch.ones(3)}, r"bfloat16 is \[9, 8\] there, \[3\] in this model"),
        ({"more": torch.ones(3)}, r"more is absent there, \[3\] in this model"),
        ({"float32": torch.ones(9, 8).half()}, "tensor float32 of .* is torch.float16"),
    ],
)
def test_a_base_of_another_layout_is_refused(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    base, tuned = models()
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    extract(one, two, tmp_path / "delta.safetensors")
    with pytest.raises(UserError, match=message):
        apply(
            folder_of(tmp_path / "other", {**base, **change}),
            tmp_path / "delta.safetensors",
            tmp_path / "out",
        )
    assert left_behind(tmp_path) == set()


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    base, tuned = models()
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    extract(one, two, tmp_path / "delta.safetensors")
    with pytest.raises(UserError, match="already exists"):
        apply(one, tmp_path / "delta.safetensors", two)
    with pytest.raises(UserError, match="already exists"):
        apply(one, tmp_path / "delta.safetensors", one)
    assert_same_bits(one, base)
    assert_same_bits(two, tuned)
    assert left_behind(tmp_path) == set()


def test_a_killed_apply_leaves_a_part_and_the_next_one_succeeds(tmp_path: Path) -> None:
    base, tuned = models()
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    extract(one, two, tmp_path / "delta.safetensors")
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "stale").write_text("of a killed run")
    apply(one, tmp_path / "delta.safetensors", tmp_path / "out")
    assert_same_bits(tmp_path / "out", tuned)
    assert not (tmp_path / "out" / "stale").exists() and not (tmp_path / "out.part").exists()


def test_a_delta_of_live_tensors_applies_to_the_saved_base(tmp_path: Path) -> None:
    base, tuned = models()
    where = {
        "bfloat16": torch.arange(0, 72, 13, dtype=torch.int32),
        "empty": torch.empty(0, dtype=torch.int32),
    }
    values = {name: tuned[name].view(-1)[indices.long()] for name, indices in where.items()}
    path = tmp_path / "delta.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    metadata = {"criterion": "delta", "score_dtype": "float32"}
    write_delta(
        path,
        indices=where,
        values=values,
        shapes=shapes,
        base_hashes=digests(base.items()),
        metadata=metadata,
    )
    delta = read_delta(path)
    assert delta.metadata == metadata and delta.base_fingerprint == fingerprint_tensors(base.items())
    assert delta.indices.keys() == {"bfloat16"} and delta.num_weights == 7 * 72 + 25
    apply(folder_of(tmp_path / "base", base), path, tmp_path / "out")
    assert_same_bits(tmp_path / "out", {**base, "bfloat16": tuned["bfloat16"]})


def test_applying_to_a_live_model_is_in_place_and_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2)).bfloat16()
    base = {name: param.detach().clone() for name, param in model.named_parameters()}
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["0.weight"][2, 3], tuned["1.bias"][1] = 7.0, -0.0
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    extract(one, two, tmp_path / "delta.safetensors")
    delta = read_delta(tmp_path / "delta.safetensors")
    live = model[0].weight
    apply_to_model(model.named_parameters(), delta)
    assert live is model[0].weight and live.requires_grad and live.grad_fn is None
    assert fingerprint_tensors(model.named_parameters()) == fingerprint(two)
    wide = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2))
    apply_to_model(wide.named_parameters(), delta)
    assert wide[0].weight[2, 3] == 7
    with pytest.raises(UserError, match="would round them"):
        apply_to_model([(name, param.half()) for name, param in wide.named_parameters()], delta)
    with pytest.raises(UserError, match=r"no tensor 0\.weight"):
        apply_to_model([("1.bias", wide[1].bias)], delta)
    with pytest.raises(UserError, match=r"0\.weight is \[4, 6\] there, \[6, 4\] in this model"):
        apply_to_model([("0.weight", wide[0].weight.t()), ("1.bias", wide[1].bias)], delta)


def test_a_damaged_delta_is_refused(tmp_path: Path) -> None:
    base, tuned = models()
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    path = tmp_path / "delta.safetensors"
    extract(one, two, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"delta\.safetensors is truncated"):
        apply(one, path, tmp_path / "out")
    header = {"kind": "delta", "schema": 1, "shapes": {"w": [2]}, "metadata": {}}
    save_file({}, path, metadata={"allo": json.dumps(header)})
    with pytest.raises(UserError, match="lacks base_hashes"):
        read_delta(path)
    save_file({}, path, metadata={"allo": json.dumps({**header, "base_hashes": {"w": "00"}, "k": 3})})
    with pytest.raises(UserError, match="0 entries instead of 3"):
        read_delta(path)
    assert left_behind(tmp_path) == set()


@pytest.mark.parametrize("profile", ["compact", "interop"])
def test_info_tells_the_profile(tmp_path: Path, profile: Profile) -> None:
    base, tuned = models()
    one, two = folder_of(tmp_path / "base", base), folder_of(tmp_path / "tuned", tuned)
    extract(one, two, tmp_path / "delta.safetensors", profile=profile)
    assert info(tmp_path / "delta.safetensors").profile == profile
