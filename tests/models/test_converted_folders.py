"""Folders of families that transformers converts: what is damaged or odd in them is found before they are loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter

import converted
from allo.errors import UserError
from allo.models import model_checks
from allo.models.load import check_folder, linear_names, load_model
from allo.models.start import is_ready, save_whole
from allo.recipe import Recipe
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.layout import Layout
from tiny import TOKENIZER

EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


def recipe(folder: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "model": str(folder),
            "dtype": "float32",
            "device": "cpu",
            "data": {"pairs": "unused.jsonl"},
            "evaluate": {"sets": {"none": {"task": "planted_flaws"}}},
        }
    )


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", [name for name in converted.FAMILIES if name != "gpt_oss"])
def test_the_users_folder_is_the_start(tmp_path: Path, family: str) -> None:
    assert is_ready(recipe(converted.saved(family, tmp_path))) == tmp_path


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "ernie4_5_moe"])
def test_a_folder_in_bf16_with_what_the_family_keeps_in_fp32_is_the_start(
    tmp_path: Path, family: str
) -> None:
    """Biases and weights of routers, which transformers stores so."""
    converted.saved(family, tmp_path, torch.bfloat16)
    converted.plain(family, tmp_path, torch.bfloat16).save_pretrained(tmp_path)
    stored = {entry.dtype for entry in Checkpoint.open(tmp_path).stored.values()}
    assert stored == {torch.bfloat16, torch.float32}
    assert is_ready(recipe(tmp_path).model_copy(update={"dtype": "bfloat16"})) == tmp_path


def test_an_expert_of_another_shape_is_named(tmp_path: Path) -> None:
    rewrite(converted.saved("mixtral", tmp_path), lambda all: all.update({EXPERT: torch.zeros(3, 16)}))
    with pytest.raises(UserError, match=rf"tensor {EXPERT} has shape \[3, 16\].*makes it \[24, 16\]"):
        check_folder(tmp_path, tmp_path)


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    rewrite(converted.saved("mixtral", tmp_path), lambda all: all.pop(EXPERT))
    with pytest.raises(UserError, match=rf"1 weights of MixtralForCausalLM are missing.*{EXPERT}"):
        check_folder(tmp_path, tmp_path)


def test_an_expert_too_many_is_named(tmp_path: Path) -> None:
    stray = EXPERT.replace("layers.1", "layers.7")
    rewrite(converted.saved("mixtral", tmp_path), lambda all: all.update({stray: torch.zeros(24, 16)}))
    with pytest.raises(UserError, match=rf"has no place for tensor {stray}"):
        check_folder(tmp_path, tmp_path)


def test_weights_under_their_live_names_are_a_start(tmp_path: Path) -> None:
    converted.built("qwen3_moe").save_pretrained(tmp_path, save_original_format=False)
    TOKENIZER.save_pretrained(tmp_path)
    assert is_ready(recipe(tmp_path)) == tmp_path


def test_a_tensor_that_the_family_ignores_stays_in_the_start(tmp_path: Path) -> None:
    folder = converted.saved("qwen3_5", tmp_path)
    assert [name for name in Checkpoint.open(folder).stored if name.startswith("model.visual.")]
    assert is_ready(recipe(folder)) == folder
    rewrite(folder, lambda all: all.update({"mtp.layers.0.weight": torch.zeros(2)}))
    assert is_ready(recipe(folder)) == folder
    rewrite(folder, lambda all: all.update({"model.other.weight": torch.zeros(2)}))
    assert is_ready(recipe(folder)) is None


def test_what_a_run_saves_has_the_names_of_the_folder(tmp_path: Path) -> None:
    folder = converted.saved("deepseek_v3", tmp_path / "model")
    save_whole(converted.plain("deepseek_v3", folder), TOKENIZER, tmp_path / "saved")
    assert fingerprint(tmp_path / "saved") == fingerprint(folder)


def test_linear_layers_have_both_their_names(tmp_path: Path) -> None:
    linear = linear_names(converted.saved("gemma3", tmp_path / "gemma3"))
    tail = "layers.0.self_attn.q_proj.weight"
    assert linear[f"language_model.model.{tail}"] == f"model.language_model.{tail}"
    experts = linear_names(converted.saved("mixtral", tmp_path / "mixtral"))
    assert f"model.{tail}" in experts
    assert not [name for name in experts if "experts" in name]


@pytest.mark.parametrize("family", ["mixtral", *converted.BARE])
def test_a_folder_without_the_bodys_prefix_is_the_start_and_gives_the_names(
    tmp_path: Path, family: str
) -> None:
    folder = converted.bare(family, tmp_path / "model")
    assert is_ready(recipe(folder)) == folder
    model = load_model(folder, dtype=torch.float32, device="cpu")
    assert Layout.whole(model).shapes.items() <= Checkpoint.open(folder).shapes.items()
    again = converted.plain(family, folder).state_dict()
    save_whole(model, TOKENIZER, tmp_path / "saved")
    saved = converted.plain(family, tmp_path / "saved").state_dict()
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in again.items())
    assert Checkpoint.open(tmp_path / "saved").shapes == Layout.whole(model).shapes


class Doubled(ConversionOps):
    """Stores twice each weight."""

    def convert(self, input_dict: dict[str, list[Tensor]], **_: object) -> dict[str, Tensor]:
        return {"dense_h_to_4h": 2 * next(iter(input_dict.values()))[0]}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def test_a_conversion_that_is_no_bijection_is_refused_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families, doubling = model_checks.get_model_conversion_mapping, {"operations": [Doubled()]}
    mapping = WeightConverter("dense_h_to_4h", "dense_h_to_4h", **doubling)
    monkeypatch.setattr(
        model_checks, "get_model_conversion_mapping", lambda model: [*families(model), mapping]
    )
    folder = converted.saved("gpt_neox", tmp_path)
    with pytest.raises(UserError, match="do not hold the same weights one to one"):
        check_folder(folder, folder)
