"""Rows that are longer than a model's positions are refused before the first stage, whatever its positions are called."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_quantized_refused import recipe
from transformers import (
    AutoConfig,
    BloomConfig,
    DebertaV2Config,
    FalconConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    RobertaConfig,
)

import tiny
from allo.errors import UserError
from allo.models.load import read_config
from allo.models.model_checks import check_positions, num_positions
from allo.stages.check import _check_lengths
from refusals import refusal
from tiny import in_one_row


def rotary(kind: str) -> PretrainedConfig:
    """Angles that change after 40 of 77 positions."""
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 40}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    return LlamaConfig(max_position_embeddings=77, rope_parameters=rope)


CONFIGS: list[tuple[PretrainedConfig, int | None]] = [
    (LlamaConfig(max_position_embeddings=77), 77),
    (rotary("dynamic"), 40),  # beyond, a token's probability depends on how many follow
    (rotary("longrope"), 77),
    (rotary("yarn"), 77),
    (GPT2Config(n_positions=32), 32),
    (GPTJConfig(n_positions=48), 48),
    (OPTConfig(max_position_embeddings=40), 40),
    (MptConfig(max_seq_len=50, attn_config={"alibi": False}), 50),
    (MptConfig(max_seq_len=50, attn_config={"alibi": True}), None),
    (FalconConfig(alibi=True), None),
    (FalconConfig(alibi=False, max_position_embeddings=60), 60),
    (BloomConfig(seq_length=2048), None),
    (MambaConfig(), None),
    (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
    (DebertaV2Config(position_biased_input=False), None),
    (AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 90}), 90),
    *(
        (PretrainedConfig(**{name: 21}), 21)
        for name in ("n_ctx", "max_sequence_length", "max_target_positions", "seq_length", "max_seq_length")
    ),
    (PretrainedConfig(), None),
    (PretrainedConfig(max_position_embeddings=-1), None),
    (PretrainedConfig(n_ctx="many"), None),
]


@pytest.mark.parametrize(("config", "expected"), CONFIGS)
def test_positions_are_found_under_every_name(config: PretrainedConfig, expected: int | None) -> None:
    assert num_positions(config) == expected


def learned(folder: Path, kind: str, positions: int) -> Path:
    """A tiny model with a learned table of positions."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(tiny.TOKENIZER)}
    if kind == "gpt2":
        GPT2LMHeadModel(
            GPT2Config(n_positions=positions, n_embd=16, n_layer=1, n_head=2, **sizes)
        ).save_pretrained(folder)
    else:
        shape = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = OPTConfig(max_position_embeddings=positions, word_embed_proj_dim=16, **shape, **sizes)
        OPTForCausalLM(config).save_pretrained(folder)
    tiny.TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_the_positions_found_are_those_that_the_model_can_read(tmp_path: Path, kind: str) -> None:
    from allo.models.load import load_model

    model = load_model(learned(tmp_path / "model", kind, 32), dtype=torch.float32, device="cpu")
    positions = num_positions(model.config)
    assert positions == 32
    model(torch.ones(1, positions, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.ones(1, positions + 3, dtype=torch.long))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_length_beyond_them_is_refused_for_pairs_with_what_to_set(tmp_path: Path, kind: str) -> None:
    folder = learned(tmp_path / "model", kind, 32)
    asked = recipe(folder).model_copy(update={"max_length": 33})
    short = asked.evaluate.model_copy(update={"max_new_tokens": 4, "kl_tokens": 4})
    asked = asked.model_copy(update={"evaluate": short})
    positions = num_positions(read_config(folder))
    with pytest.raises(
        UserError, match=rf"max_length is 33, but {folder} has 32 positions .*set max_length to 32"
    ):
        _check_lengths(asked, positions)
    fitting = asked.model_copy(update={"max_length": 32})
    assert refusal(lambda: _check_lengths(fitting, positions)) is None


def test_no_limit_refuses_no_length() -> None:
    for positions, length in ((None, 10**9), (64, 64)):
        assert refusal(partial(check_positions, positions, length, key="max_length", ref="model")) is None


def test_padding_of_shared_rows_lies_within_the_positions_of_the_longest_pair() -> None:
    """A long second answer beside rows with a short first one pads these far beyond it."""
    rows = [([1] * 24, [1] * 8, [2] * 8), ([1] * 30, [1], [1] * 2), ([1], [1] * 3, [1])]
    batch = in_one_row(rows)
    assert batch["input_ids"].shape[1] == 40
    assert batch["position_ids"].max() == 31
    assert batch["position_ids"][1].tolist() == [*range(31), 30, 31, *[0] * 7]
