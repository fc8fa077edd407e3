"""Masks and importances: they survive the disk, refuse what is not theirs, and agree with selection."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from allo.errors import UserError
from allo.weights import selection
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import MaskRow, ParamMask
from allo.weights.selection import num_to_select, select

SHAPES = {
    "model.embed_tokens.weight": (10, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.self_attn.q_proj.bias": (4,),
    "model.layers.1.self_attn.q_proj.weight": (4, 4),
    "model.norm.weight": (4,),
}
SOME = {
    "model.embed_tokens.weight": torch.tensor([0, 7, 39], dtype=torch.int32),
    "model.layers.0.self_attn.q_proj.weight": torch.tensor([15], dtype=torch.int32),
    "model.layers.0.self_attn.q_proj.bias": torch.tensor([1, 2], dtype=torch.int32),
}


def some() -> ParamMask:
    return ParamMask(SOME, shapes=SHAPES, metadata={"criterion": "delta", "base_fingerprint": "ab"})


def test_a_mask_survives_the_disk_and_the_same_mask_gives_the_same_bytes(tmp_path: Path) -> None:
    some().save(tmp_path / "a.safetensors")
    some().save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    loaded = ParamMask.load(tmp_path / "a.safetensors")
    assert loaded.indices.keys() == SOME.keys() and dict(loaded.shapes) == SHAPES
    assert all(torch.equal(loaded.indices[name], SOME[name]) for name in SOME)
    assert loaded.metadata == {"criterion": "delta", "base_fingerprint": "ab", "granularity": "weight"}
    assert (loaded.num_selected, loaded.num_weights, loaded.density) == (6, 80, 6 / 80)


def test_a_full_mask_selects_everything() -> None:
    full = ParamMask.full({**SHAPES, "empty": (0, 3)})
    assert full.density == 1 and "empty" not in full.indices
    assert full.indices["model.norm.weight"].tolist() == [0, 1, 2, 3]


def test_statistics_count_by_layer_and_kind() -> None:
    assert some().statistics() == [
        MaskRow("-", "embed_tokens", 3, 40),
        MaskRow("0", "q_proj", 3, 20),
        MaskRow("1", "q_proj", 0, 16),
        MaskRow("-", "norm", 0, 4),
    ]


def test_overlap_is_the_common_share_of_the_smaller_mask() -> None:
    name = "model.embed_tokens.weight"
    other = ParamMask({name: torch.tensor([7, 38], dtype=torch.int32)}, shapes=SHAPES)
    empty = ParamMask({}, shapes=SHAPES)
    assert some().overlap(other) == other.overlap(some()) == 1 / 2
    assert some().overlap(some()) == some().overlap(ParamMask.full(SHAPES)) == 1
    assert some().overlap(empty) == 0


def test_another_models_mask_is_refused_by_tensor_and_shapes() -> None:
    some().check(SHAPES)
    with pytest.raises(UserError, match=r"model\.norm\.weight is \[4\] there, \[5\] in this model"):
        some().check({**SHAPES, "model.norm.weight": (5,)})
    with pytest.raises(UserError, match=r"lm_head\.weight is absent there, \[10, 4\] in this model"):
        some().check({**SHAPES, "lm_head.weight": (10, 4)})
    with pytest.raises(UserError, match=r"model\.norm\.weight is \[4\] there, absent in this model"):
        some().check({name: shape for name, shape in SHAPES.items() if "norm" not in name})


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"w": int32(0, 1, 2, 3, 3, 5)}, r"the mask: w\.indices must be sorted and unique"),
        ({"w": int32(2, 1)}, r"the mask: w\.indices must be sorted and unique"),
        ({"w": int32(0, 6)}, r"w\.indices go from 0 to 6, outside .*\[2, 3\]"),
        ({"w": int32(-1, 2)}, r"w\.indices go from -1 to 2"),
        ({"w": torch.tensor([1])}, "int32 tensor, found torch.int64"),
        ({"w": int32(1), "v": int32(1)}, "the mask: v is not one of the model's tensors"),
    ],
)
def test_a_mask_that_is_no_set_of_the_models_weights_is_refused(
    indices: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ParamMask(indices, shapes={"w": (2, 3)})


HEADER = {"kind": "mask", "schema": 1, "shapes": {"w": [2, 3]}, "metadata": {}}


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"w.indices": int32(2, 1)}, HEADER, "w.indices must be sorted"),
        ({"w.indices": int32(1, 1)}, HEADER, "w.indices must be sorted and unique"),
        ({"w.indices": int32(0, 6)}, HEADER, r"w.indices go from 0 to 6, outside .*\[2, 3\]"),
        ({"w.indices": int32(-1, 2)}, HEADER, "w.indices go from -1 to 2"),
        ({"w.indices": torch.tensor([1])}, HEADER, "int32 tensor, found torch.int64"),
        ({"w.indices": torch.ones(2, 2, dtype=torch.int32)}, HEADER, "one-dimensional"),
        ({"v.indices": int32(1)}, HEADER, "unexpected tensor v.indices"),
        ({}, {**HEADER, "kind": "delta"}, "not a mask of allo: its header says 'delta'"),
        ({}, {**HEADER, "schema": 5}, "schema 5"),
        ({}, {"kind": "mask", "schema": 1, "metadata": {}}, "no valid shapes"),
        ({}, {**HEADER, "shapes": {"w": "2x3"}}, "no valid shapes"),
        ({}, {**HEADER, "shapes": {"w": [2, -3]}}, "no valid shapes"),
        ({}, {"kind": "mask", "schema": 1, "shapes": {}}, "no metadata"),
        ({}, [], "must be a JSON object"),
    ],
)
def test_a_damaged_mask_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], header: object, message: str
) -> None:
    path = tmp_path / "mask.safetensors"
    save_file(tensors, path, metadata={"allo": json.dumps(header)})
    with pytest.raises(UserError, match=message) as refusal:
        ParamMask.load(path)
    assert str(path) in str(refusal.value)


def test_a_file_that_is_not_a_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    with pytest.raises(UserError, match="no such file"):
        ParamMask.load(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(UserError, match="no allo header"):
        ParamMask.load(path)
    some().save(path)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated"):
            ParamMask.load(path)


def scores() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.rand(40, 50, generator=generator).bfloat16().float(), "b": torch.zeros(1000)}


@pytest.mark.parametrize("granularity", ["weight", "row"])
def test_an_infinite_score_of_any_criterion_is_refused_by_its_tensor(granularity: str) -> None:
    """Infinity would rank above every number, and say nothing of the weights."""
    tensors = scores() | {"c": torch.full((4, 50), torch.inf)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with pytest.raises(UserError, match=r"criterion taylor.*tensor c has .* infinite.*another criterion"):
        ImportanceMap.top(
            lambda: tensors.items(),
            density=0.1,
            shapes=shapes,
            metadata={"criterion": "taylor"},
            granularity=granularity,
        )


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_a_mask_of_any_smaller_density_is_the_direct_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(selection, "IN_MEMORY", in_memory)
    tensors = scores()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    pieces = [(n, piece) for n, tensor in tensors.items() for piece in torch.split(tensor.reshape(-1), 300)]
    # 0.8 reaches into the zeros, all of which tie.
    made = ImportanceMap.top(lambda: pieces, density=0.8, shapes=shapes, metadata={"criterion": "delta"})
    made.save(tmp_path / "importance.safetensors")
    loaded = ImportanceMap.load(tmp_path / "importance.safetensors")
    assert loaded.density == 0.8
    for name, indices in loaded.indices.items():
        assert torch.equal(loaded.scores[name], tensors[name].reshape(-1)[indices.long()])
    for density in (0.001, 0.05, 0.33, 0.7, 0.8):
        mask = loaded.mask_at(density)
        direct = select(lambda: tensors.items(), k=num_to_select(density, 3000))
        assert mask.indices.keys() == direct.keys()
        assert all(torch.equal(mask.indices[name], direct[name]) for name in direct)
        assert mask.density == density
        assert mask.metadata == {"criterion": "delta", "score_dtype": "float32", "density": str(density)}
    with pytest.raises(UserError, match=r"0.81 selects more weights than the importance file keeps \(0.8\)"):
        loaded.mask_at(0.81)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w.indices": int32(1)}, "w.scores is missing"),
        ({"w.scores": torch.ones(1)}, "w.indices is missing"),
        ({"w.indices": int32(1), "w.scores": torch.ones(2)}, "differ in length"),
        ({"w.indices": int32(1), "w.scores": torch.ones(1).bfloat16()}, "must be float32"),
    ],
)
def test_a_damaged_importance_is_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    path = tmp_path / "importance.safetensors"
    save_file(tensors, path, metadata={"allo": json.dumps({**HEADER, "kind": "importance"})})
    with pytest.raises(UserError, match=message):
        ImportanceMap.load(path)
