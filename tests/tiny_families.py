"""Tiny random models of many families, with weights large enough for a wrong mask, state or scale to show."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from allo.models.load import model_of_config

VOCABULARY = 64
LIMIT = 16  # of "longrope" angles
WINDOW = 5

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
_EXPERTS |= {"moe_intermediate_size": 24}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_LATENT |= {"num_key_value_heads": 4}
_LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
_LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
_MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_MAMBA |= {"mamba_chunk_size": 8}
_TWO_KINDS = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_PER_LAYER = {
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
}
_PER_LAYER |= {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}
_LONGROPE = {
    "original_max_position_embeddings": LIMIT,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": LIMIT,
    },
}
# Settings of each family, added to the common sizes. A second configuration of a type is named `type+variant`.
FAMILIES: dict[str, dict[str, Any]] = {
    # Without SDPA: soft-capped scores, sinks, ALiBi.
    "gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gpt_oss": {**_EXPERTS, "sliding_window": WINDOW, "intermediate_size": 24},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "gptj": {**_GPT, "rotary_dim": 4},
    # States beside attention, or instead of it.
    "qwen3_next": {**_EXPERTS, **_LINEAR, "num_hidden_layers": 4, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": {**_LINEAR, "num_hidden_layers": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_key_value_heads": 4,
    },
    "jamba": {**_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "nemotron_h": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "granitemoehybrid": {
        **_EXPERTS,
        **_MAMBA,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
    },
    "falcon_h1": {**_MAMBA, "lm_head_multiplier": 0.3},
    "falcon_mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": WINDOW,
        "num_key_value_heads": 1,
        "logits_soft_cap": 3.0,
    },
    # Latent attention.
    "deepseek_v3": {**_EXPERTS, **_LATENT, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "minicpm3": {**_LATENT, "dim_model_base": 16},
    # Layers that share keys, have embeddings of their own, windows, chunks.
    "gemma3n_text": {
        **_PER_LAYER,
        "sliding_window": WINDOW,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "intermediate_size": [48] * 6,
        "activation_sparsity_pattern": [0.0] * 6,
    },
    "gemma4_text": {**_PER_LAYER, "sliding_window": WINDOW, "global_head_dim": 8},
    "llama4_text": {
        **_EXPERTS,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 8,
        "num_hidden_layers": 4,
    },
    "olmo3": {**_TWO_KINDS, "sliding_window": WINDOW},
    # Learned positions, ALiBi under SDPA, and the plainest.
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "nemotron": {},
    "mixtral": _EXPERTS,
    "phimoe": _EXPERTS,
    "phi3": {},
    "phi3+longrope": _LONGROPE,
    "phimoe+longrope": {
        **_EXPERTS,
        **_LONGROPE,
        "rope_parameters": {**_LONGROPE["rope_parameters"], "short_mscale": 1.0, "long_mscale": 1.1},
    },
    "llama": {},
    # Decoding with a cache of their own, or none.
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {},
    "openai-gpt": _GPT,
}


def config_of(family: str, **settings: Any) -> PreTrainedConfig:
    kind = CONFIG_MAPPING[family.partition("+")[0]]
    known = {*kind.__dataclass_fields__, *kind.attribute_map}
    given = copy.deepcopy(_SIZES | FAMILIES[family] | settings)
    return kind(**{name: value for name, value in given.items() if name in known})


def family_model(family: str, **settings: Any) -> PreTrainedModel:
    """A random model in eval mode; matrices and biases are large, whatever the family begins with."""
    torch.manual_seed(0)
    model = model_of_config(config_of(family, **settings), dtype=torch.float32)
    for name, param in model.named_parameters():
        if any(part in name for part in ("A_log", "dt_", "recurrent_param", "norm")):
            continue
        if param.ndim > 1 and param.std() < 0.1:
            torch.nn.init.normal_(param, std=0.3)
        elif not param.any():
            torch.nn.init.normal_(param, std=0.1)
    return model


def ids(length: int, *, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def plain_logps(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """The log-probs of a completion's tokens, from one unpadded forward pass and the model's own logits."""
    row = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


def greedy(model: PreTrainedModel, prompt: Sequence[int], length: int) -> list[int]:
    """The most probable continuation by whole forward passes of the row alone, without a cache."""
    row = list(prompt)
    for _ in range(length):
        row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    return row[len(prompt) :]


def generated(model: PreTrainedModel, prompt: Sequence[int], length: int) -> list[int]:
    """The most probable continuation of the row alone by transformers' `generate`."""
    row = torch.tensor([prompt])
    mask = torch.ones_like(row)
    out = model.generate(
        row, attention_mask=mask, do_sample=False, max_new_tokens=length, pad_token_id=0, eos_token_id=None
    )
    return out[0, len(prompt) :].tolist()
