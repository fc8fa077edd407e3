"""Quantised weights, leftover scales and weights without a place are refused by header, and the dense model is asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from allo.errors import UserError
from allo.models.load import load_model, load_tokenizer, read_config
from allo.models.reward_model import load_reward_model, read_reward_config
from allo.models.start import check_policy, is_ready
from allo.recipe import Recipe
from model_folders import copy_of, edit, tensors_of, write

Damage = Callable[[Path], None]
PROJECTION = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def recipe(model: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "here",
            "model": str(model),
            "dtype": "float32",
            "device": "cpu",
            "max_length": 64,
            "data": {"pairs": "pairs.jsonl"},
            "improve": {"density": 1.0},
            "evaluate": {"sets": {"test": {"file": "test.jsonl"}}},
        }
    )


def stored_as(dtype: torch.dtype, name: str = PROJECTION, *, scale: str = "") -> Damage:
    def damage(folder: Path) -> None:
        tensors = tensors_of(folder)
        tensors[name] = tensors[name].to(dtype)
        if scale:
            tensors[name + scale] = torch.ones(1)
        write(folder, tensors)

    return damage


def beside(**tensors: torch.Tensor) -> Damage:
    return lambda folder: write(
        folder, tensors_of(folder) | {n.replace("__", "."): t for n, t in tensors.items()}
    )


def says(**config: object) -> Damage:
    return lambda folder: edit(folder, "config.json", **config)


METHODS = ("fp8", "compressed-tensors", "gptq", "awq", "bitsandbytes", "mxfp4", "torchao")
CASES: list[tuple[Damage, str]] = [
    *((says(quantization_config={"quant_method": method}), f"quantised .*{method}") for method in METHODS),
    (says(quantization_config={}), "quantised"),
    (says(quantization_config=["fp8"]), "quantised"),
    (says(compression_config={"quant_method": "compressed-tensors"}), "quantised .*compression_config"),
    (says(text_config={"quantization_config": {"quant_method": "fp8"}}), "quantised .*fp8"),
    (stored_as(torch.int8), f"{PROJECTION} is stored as int8: quantised"),
    (stored_as(torch.int8, scale="_scale"), f"{PROJECTION} is stored as int8: quantised"),
    (stored_as(torch.uint8, NORM), f"{NORM} is stored as uint8: quantised"),
    (stored_as(torch.bool), f"{PROJECTION} is stored as bool"),
    (
        stored_as(torch.float8_e4m3fn, scale="_scale_inv"),
        f"{PROJECTION} is stored as float8_e4m3fn: quantised",
    ),
    (stored_as(torch.float8_e5m2), f"{PROJECTION} is stored as float8_e5m2: quantised"),
    (
        stored_as(torch.float32, scale="_scale_inv"),
        "q_proj.weight_scale_inv has no place .*scales of quantised",
    ),
    (stored_as(torch.bfloat16, scale="_scale"), "weight_scale has no place .*scales of quantised"),
    (
        beside(model__layers__0__self_attn__q_proj__qzeros=torch.ones(2)),
        "qzeros has no place .*scales of quantised",
    ),
    (
        beside(model__layers__0__self_attn__q_proj__g_idx=torch.ones(2)),
        "g_idx has no place .*scales of quantised",
    ),
]


@pytest.mark.parametrize(("damage", "message"), CASES)
def test_quantised_weights_are_refused_before_anything_is_loaded(
    folder: Path, damage: Damage, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(folder)
    monkeypatch.setattr("allo.models.load.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(UserError, match=message) as refused:
        load_model(folder, dtype=torch.float32, device="cpu")
    assert str(folder) in str(refused.value) and "Give the dense original" in str(refused.value)
    with pytest.raises(UserError, match=message):
        check_policy(recipe(folder), tiny.TOKENIZER)


def test_a_null_says_nothing_of_quantisation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    loaded = load_model(folder, dtype=torch.float32, device="cpu").state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    "damage", [says(quantization_config={"quant_method": "fp8"}), stored_as(torch.int8, "score.weight")]
)
def test_a_quantised_reward_model_is_refused(tmp_path: Path, damage: Damage) -> None:
    judge = tiny.reward_model(tmp_path / "judge")
    damage(judge)
    with pytest.raises(UserError, match="quantised"):
        load_reward_model(judge, dtype=torch.float32, device="cpu")


def test_a_reward_models_configuration_is_enough_to_refuse_it(tmp_path: Path) -> None:
    judge = tiny.reward_model(tmp_path / "judge")
    edit(judge, "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(UserError, match=r"quantised .*awq"):
        read_reward_config(judge)


def test_weights_that_the_configuration_has_no_place_for_are_named(folder: Path) -> None:
    edit(folder, "config.json", num_hidden_layers=1)
    message = r"no place for tensor model\.layers\.1\.input_layernorm\.weight and 8 more"
    with pytest.raises(UserError, match=message):
        load_model(folder, dtype=torch.float32, device="cpu")
    with pytest.raises(UserError, match=message):
        check_policy(recipe(folder), tiny.TOKENIZER)


@pytest.mark.parametrize(
    "name", ["model.vision_tower.weight", "value_head.weight", "model.layers.0.mlp.extra.weight"]
)
def test_one_tensor_without_a_place_is_enough(folder: Path, name: str) -> None:
    write(folder, tensors_of(folder) | {name: torch.ones(3)})
    with pytest.raises(UserError, match=f"no place for tensor {name}, so part of"):
        load_model(folder, dtype=torch.float32, device="cpu")


def test_a_body_without_its_prefix_is_looked_at_too(folder: Path) -> None:
    """Names that transformers maps: what is left over is known after loading."""
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors_of(folder).items()}
    write(folder, bare)
    load_model(folder, dtype=torch.float32, device="cpu")
    write(folder, bare | {"layers.2.mlp.up_proj.weight": torch.ones(24, 16)})
    with pytest.raises(UserError, match=r"no place for tensor .*layers\.2\.mlp"):
        load_model(folder, dtype=torch.float32, device="cpu")


def test_tables_of_older_checkpoints_and_a_copy_of_a_tied_weight_are_no_loss(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write(folder, tensors)
    load_model(folder, dtype=torch.float32, device="cpu")
    assert is_ready(recipe(folder)) is None  # two copies: saved again under the live names


def test_the_causal_masks_that_gpt2_was_published_with_are_no_loss(tmp_path: Path) -> None:
    """Its names have no prefix, and the masks are bytes."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tiny.TOKENIZER), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    )
    model.save_pretrained(tmp_path)
    body = {
        name.removeprefix("transformer."): tensor.clone()
        for name, tensor in model.transformer.state_dict().items()
    }
    masks = {
        "h.0.attn.bias": torch.ones(1, 1, 32, 32).tril().byte(),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    save_file(body | masks, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(tmp_path, dtype=torch.float32, device="cpu")
    assert all(torch.equal(loaded.transformer.state_dict()[name], tensor) for name, tensor in body.items())


def test_a_folder_of_another_size_is_refused_without_taking_its_memory(folder: Path) -> None:
    for key, value, message in (
        ("vocab_size", 10**7, r"embed_tokens\.weight has shape \[163, 16\].*makes it \[10000000, 16\]"),
        ("vocab_size", 10**12, "vocab_size: 1000000000000"),
        ("num_hidden_layers", 1900, "1900, but the files hold 20 tensors"),
        ("num_hidden_layers", 10**9, "num_hidden_layers: 1000000000"),
        ("hidden_size", 1 << 30, "hidden_size: 1073741824"),
        ("intermediate_size", 25, r"has shape .*24.* makes it .*25"),
    ):
        broken = copy_of(folder, folder.with_name(f"{key}-{value}"))
        edit(broken, "config.json", **{key: value})
        with pytest.raises(UserError, match=message):
            load_model(broken, dtype=torch.float32, device="cpu")


def test_what_is_whole_and_dense_passes_every_check(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert check_policy(recipe(folder), tokenizer).vocab_size == len(tokenizer)
    assert is_ready(recipe(folder)) == folder
    assert read_config(folder).num_hidden_layers == 2
