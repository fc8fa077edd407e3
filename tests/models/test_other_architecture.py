"""A config.json of another architecture than the weights is refused from the files' headers, before the first stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
)

from allo.errors import UserError
from allo.models.load import check_folder
from refusals import refusal

SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, intermediate_size=24),
    "gpt2": GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2),
    "neox": GPTNeoXConfig(**SIZES, intermediate_size=24),
    "opt": OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16),
    "qwen3": Qwen3Config(**SIZES, intermediate_size=24, num_key_value_heads=2, head_dim=8),
    "mixtral": MixtralConfig(**SIZES, intermediate_size=24, num_key_value_heads=2, num_local_experts=2),
}


def saved(folder: Path, kind: str, **changes: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_under_their_own_configuration_pass(tmp_path: Path, kind: str) -> None:
    assert refusal(lambda: check_folder(saved(tmp_path, kind), tmp_path)) is None


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_body_alone_without_its_prefix_has_the_models_shapes(tmp_path: Path, kind: str) -> None:
    AutoModelForCausalLM.from_config(CONFIGS[kind]).base_model.save_pretrained(tmp_path)
    smaller = CONFIGS[kind].to_dict() | {"vocab_size": 31}
    type(CONFIGS[kind])(**smaller).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has shape .*32, 16.* but config.json makes it .*31, 16"):
        check_folder(tmp_path, tmp_path)


@pytest.mark.parametrize("other", CONFIGS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_of_another_architecture_is_refused(tmp_path: Path, kind: str, other: str) -> None:
    if kind == other:
        return
    CONFIGS[other].save_pretrained(saved(tmp_path, kind))
    with pytest.raises(UserError, match=r"no place for tensor|weights of .* are missing|has shape"):
        check_folder(tmp_path, tmp_path)
