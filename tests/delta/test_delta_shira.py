"""A delta exported as a PEFT SHiRA adapter gives the tuned model's logits, bit for bit, and PEFT is the oracle."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny
from allo import cli
from allo.delta import apply, export_shira, extract
from allo.delta.shira import NO_TARGET, Increments, ShiraInfo, common_rank, increments
from allo.errors import UserError
from allo.models.load import linear_names
from allo.weights.fingerprints import as_bits

# PEFT asks transformers by a name that transformers has replaced.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.arange(48).reshape(2, 24)
EVERY_FP16 = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
NUM_PAIRS = 300

Change = Callable[[str, Tensor], Tensor]


@pytest.fixture(autouse=True)
def checked_sparse_tensors() -> Iterator[None]:
    """PEFT makes its sparse tensors from the file's indices unchecked, and torch warns about that."""
    with torch.sparse.check_sparse_tensor_invariants():
        yield


def sixteenth(tensor: Tensor, *, factor: float = 1.25) -> Tensor:
    """Every sixteenth weight multiplied: every difference is exact."""
    tensor.view(-1)[::16] *= factor
    return tensor


def changed(path: Path, change: Change, *, dtype: torch.dtype = torch.float32, **config: Any) -> None:
    """Save a tiny model as `base`, as `tuned` with `change` made to its Linear weights, and the delta."""
    model = tiny.model(dtype, **{"tie_word_embeddings": False} | config)
    model.save_pretrained(path / "base")
    linear = linear_names(path / "base")
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name in linear:
                param.copy_(change(name, param.clone()))
    model.save_pretrained(path / "tuned")
    extract(path / "base", path / "tuned", path / "delta.safetensors")


def exported(path: Path) -> ShiraInfo:
    linear = linear_names(path / "base")
    return export_shira(path / "base", path / "delta.safetensors", path / "adapter", linear=linear)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def adapted(path: Path, dtype: torch.dtype = torch.float32) -> PeftModel:
    return PeftModel.from_pretrained(load(path / "base", dtype), path / "adapter").eval()


def assert_same_logits(path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Check that the base with the adapter has the tuned model's logits, and the base alone has others."""
    model, tuned = adapted(path, dtype), load(path / "tuned", dtype)
    with torch.no_grad():
        wanted = tuned(IDS).logits
        assert torch.equal(model(IDS).logits, wanted)
        with model.disable_adapter():
            assert not torch.equal(model(IDS).logits, wanted)


# Differences


@given(st.integers(0, 2**31))
@settings(max_examples=3, deadline=None)
def test_a_difference_is_found_exactly_where_there_is_one(seed: int) -> None:
    """All 65536 fp16 numbers are drawn from, for pairs of any bits and for pairs near each other."""
    generator = torch.Generator().manual_seed(seed)
    old = EVERY_FP16[torch.randint(2**16, (NUM_PAIRS,), generator=generator)]
    new = EVERY_FP16[torch.randint(2**16, (NUM_PAIRS,), generator=generator)]
    near = (old * (torch.randn(NUM_PAIRS, generator=generator))).half()
    for target in (new, near):
        found, reached = increments(old, target)
        exists = torch.stack([(a + EVERY_FP16 == b).any() for a, b in zip(old, target, strict=True)])
        assert torch.equal(reached, exists)
        assert torch.equal((old + found)[reached], target[reached])
        assert not reached[target.isnan()].any()


def test_the_neighbour_of_the_rounded_difference_reaches_what_it_does_not() -> None:
    """new is a power of two, and new - old lies in the middle between two numbers."""
    old, new = EVERY_FP16.repeat(4), torch.tensor([1.0, 0.5, 2.0, -1.0]).half().repeat_interleave(2**16)
    alone = old + (new - old) == new
    _, reached = increments(old, new)
    assert (reached & ~alone).any() and (reached | ~alone).all()


floats = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@given(st.lists(st.tuples(floats, st.floats(0.5, 2.0, width=32)), min_size=1))
@settings(deadline=None)
def test_weights_that_change_by_less_than_a_factor_of_two_are_always_reached(
    pairs: list[tuple[float, float]],
) -> None:
    """Sterbenz: the difference itself is a number of the dtype."""
    old = torch.tensor([pair[0] for pair in pairs])
    new = old * torch.tensor([pair[1] for pair in pairs])
    finite = new.isfinite() & ((new == 0) | (new.abs() >= old.abs() / 2)) & (new.abs() <= 2 * old.abs())
    found, reached = increments(old[finite], new[finite])
    assert reached.all() and torch.equal(old[finite] + found, new[finite])


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_of_sixteen_bit_weights_only_those_that_nearly_vanish_are_not_reached(
    dtype: torch.dtype, bits: int
) -> None:
    """In fp32, whose 24 bits hold a difference unless the new value is 2^-(24 - bits) of the old or less."""
    every = EVERY_FP16.view(torch.int16).view(dtype).float()
    old = every[every.isfinite()]
    generator = torch.Generator().manual_seed(0)
    new = old[torch.randperm(len(old), generator=generator)]
    _, reached = increments(old, new)
    vanishes = (new != 0) & (new.abs() <= old.abs() * 2.0 ** (bits - 24))
    assert reached[~vanishes & ((new - old).isfinite())].all()
    assert (~reached).any(), "some do vanish"


# The adapter's one rank


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_padding_fills_free_places_with_what_changes_nothing(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    places = data.draw(st.sets(st.integers(0, shape[0] * shape[1] - 1), min_size=1))
    layer = Increments(shape, torch.tensor(sorted(places), dtype=torch.int32), torch.rand(len(places)) + 1)
    for rank in range(layer.lowest_rank, layer.highest_rank + 1):
        padded = layer.padded(rank)
        assert len(padded.indices) == rank * sum(shape) <= shape[0] * shape[1]
        assert (padded.indices[1:] > padded.indices[:-1]).all() and padded.indices.dtype == torch.int32
        own = torch.isin(padded.indices, layer.indices)
        assert torch.equal(padded.indices[own], layer.indices) and torch.equal(
            padded.values[own], layer.values
        )
        zeros = torch.tensor([0.0, -0.0])[torch.arange(int((~own).sum())) % 2]
        assert torch.equal(as_bits(zeros + padded.values[~own]), as_bits(zeros))


@given(st.lists(st.tuples(st.integers(2, 12), st.integers(2, 12), st.floats(0.01, 1.0)), max_size=6))
@settings(max_examples=100, deadline=None)
def test_the_rank_fits_as_many_layers_as_any_and_is_the_lowest_that_does(
    sizes: list[tuple[int, int, float]],
) -> None:
    layers = {}
    for number, (m, n, density) in enumerate(sizes):
        k = max(1, int(density * m * n))
        layers[str(number)] = Increments((m, n), torch.arange(k, dtype=torch.int32), torch.ones(k))
    rank, fit = common_rank(layers)

    def fitting(rank: int) -> set[str]:
        """k <= r(m + n) <= mn"""
        return {
            name
            for name, layer in layers.items()
            if len(layer.indices) <= rank * sum(layer.shape) <= layer.shape[0] * layer.shape[1]
        }

    most = max(len(fitting(any_rank)) for any_rank in range(1, 20))
    assert len(fit) == most and (not fit or fit == fitting(rank))
    assert all(len(fitting(lower)) < most for lower in range(1, rank))


# PEFT as the oracle


@pytest.mark.invariant("An exported adapter gives the tuned logits in PEFT.")
@pytest.mark.parametrize("num_hidden_layers", [1, 4])
def test_peft_gives_the_tuned_logits(tmp_path: Path, num_hidden_layers: int) -> None:
    changed(tmp_path, lambda _, tensor: sixteenth(tensor), num_hidden_layers=num_hidden_layers)
    found = exported(tmp_path)
    assert (found.num_sparse, found.num_whole) == (7 * num_hidden_layers + 1, 0)
    assert_same_logits(tmp_path)


def test_peft_saves_the_very_tensors_that_were_written(tmp_path: Path) -> None:
    changed(tmp_path, lambda _, tensor: sixteenth(tensor))
    exported(tmp_path)
    adapted(tmp_path).save_pretrained(tmp_path / "again", save_embedding_layers=False)
    mine, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert mine.keys() == again.keys()
    for name in mine:
        assert mine[name].dtype == again[name].dtype and torch.equal(
            as_bits(mine[name]), as_bits(again[name])
        )


def test_merged_into_the_base_it_is_the_tuned_model(tmp_path: Path) -> None:
    changed(tmp_path, lambda _, tensor: sixteenth(tensor))
    exported(tmp_path)
    merged = tiny.weights(adapted(tmp_path).merge_and_unload())
    assert all(
        torch.equal(merged[name], tensor) for name, tensor in tiny.weights(load(tmp_path / "tuned")).items()
    )


@pytest.mark.parametrize("attention_bias", [False, True])
def test_a_layer_with_a_value_that_no_difference_reaches_is_stored_whole(
    tmp_path: Path, attention_bias: bool
) -> None:
    """One third is no sum of one and an fp32 number near minus two thirds."""

    def change(name: str, tensor: Tensor) -> Tensor:
        if ".q_proj." in name:
            tensor.view(-1)[5] = 1e-9 / 3
        return sixteenth(tensor)

    changed(tmp_path, change, attention_bias=attention_bias)
    found = exported(tmp_path)
    assert (found.num_sparse, found.num_whole) == (13, 2)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    assert_same_logits(tmp_path)


def test_layers_too_dense_for_the_common_rank_are_stored_whole(tmp_path: Path) -> None:
    changed(tmp_path, lambda name, w: w * 1.25 if "up_proj" in name else sixteenth(w))
    found = exported(tmp_path)
    assert (found.rank, found.num_whole) == (1, 2)
    assert_same_logits(tmp_path)


def test_where_every_layer_is_stored_whole_peft_still_gives_the_tuned_logits(tmp_path: Path) -> None:
    changed(tmp_path, lambda _, tensor: torch.randn_like(tensor))
    assert exported(tmp_path).num_sparse == 0
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == NO_TARGET
    )
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("load_in_fp32", [True, False])
def test_a_sixteen_bit_model_is_exact_in_its_own_dtype_and_in_fp32(
    tmp_path: Path, dtype: torch.dtype, load_in_fp32: bool
) -> None:
    """Any new values: PEFT keeps the differences in fp32 and rounds the sum once."""
    generator = torch.Generator().manual_seed(1)

    def change(_: str, tensor: Tensor) -> Tensor:
        flat = tensor.view(-1)
        flat[::16] = torch.randn(len(flat[::16]), generator=generator).to(dtype)
        return tensor

    changed(tmp_path, change, dtype=dtype)
    assert exported(tmp_path).num_whole == 0
    assert_same_logits(tmp_path, torch.float32 if load_in_fp32 else dtype)


# Refusals.


def delta_of(path: Path, base: PreTrainedModel, name: str) -> None:
    """A delta that changes one entry of the tensor `name`, and one of a Linear weight."""
    base.save_pretrained(path / "base")
    with torch.no_grad():
        for touched in (name, "model.layers.1.mlp.up_proj.weight"):
            base.get_parameter(touched).view(-1)[3] += 1
    base.save_pretrained(path / "tuned")
    extract(path / "base", path / "tuned", path / "delta.safetensors")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("model.embed_tokens.weight", {}),
        ("model.embed_tokens.weight", {"tie_word_embeddings": False}),
        ("model.norm.weight", {}),
        ("model.layers.0.self_attn.q_proj.bias", {"attention_bias": True}),
    ],
)
def test_the_tensor_that_is_no_linear_weight_is_named(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    delta_of(tmp_path, tiny.model(**config), name)
    with pytest.raises(UserError, match=rf"changes {name}, which is not a Linear layer's weight.* full"):
        exported(tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("adapter")]


def test_a_head_tied_to_the_embedding_is_no_linear_weight_of_its_own(tmp_path: Path) -> None:
    for tied in (True, False):
        tiny.model(tie_word_embeddings=tied).save_pretrained(tmp_path / str(tied))
    assert linear_names(tmp_path / "False").keys() - linear_names(tmp_path / "True") == {"lm_head.weight"}


def test_weights_of_more_than_32_bits_are_refused(tmp_path: Path) -> None:
    delta_of(tmp_path, tiny.model(torch.float64), "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"up_proj\.weight, whose dtype is torch\.float64.* full"):
        exported(tmp_path)


@pytest.mark.parametrize("where", ["mlp.up_proj", "mlp.gate_proj"], ids=["touched", "not touched"])
def test_another_base_is_refused(tmp_path: Path, where: str) -> None:
    model = tiny.model()
    delta_of(tmp_path, model, "model.layers.0.mlp.up_proj.weight")
    name = f"model.layers.0.{where}.weight"
    with torch.no_grad():
        model.get_parameter(name).view(-1)[9] += 1
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=f"not the base .* tensor {name} differ"):
        exported(tmp_path)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    changed(tmp_path, lambda _, tensor: sixteenth(tensor))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine").write_text("precious")
    with pytest.raises(UserError, match="already exists"):
        exported(tmp_path)
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["mine"]


def test_nothing_is_exported_from_a_delta_that_changes_nothing(tmp_path: Path) -> None:
    changed(tmp_path, lambda _, tensor: tensor)
    with pytest.raises(UserError, match="changes nothing"):
        exported(tmp_path)


# The command


def test_the_command_exports_both_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(tmp_path, lambda _, tensor: sixteenth(tensor))
    monkeypatch.chdir(tmp_path)
    for format_, out in (("peft-shira", "adapter"), ("full", "full")):
        argv = ["allo", "delta", "export", "base", "delta.safetensors", out, "--format", format_]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert leaving.value.code == 0
    assert "num_sparse           15" in capsys.readouterr().out
    assert_same_logits(tmp_path)
    apply("base", "delta.safetensors", "applied")
    full, applied = ({f.name: f.read_bytes() for f in Path(name).iterdir()} for name in ("full", "applied"))
    assert full == applied
