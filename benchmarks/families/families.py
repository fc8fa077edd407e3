"""The families that `make families` tries, one record each: the smallest configuration with every kind of layer.

The sizes are not those of any released model. What a family has in kind is kept: layers with windows and without,
state spaces beside attention, dense layers before mixtures of experts, shared experts, tied or untied embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

VOCABULARY = 192
POSITIONS = 256
# Shorter than the longest rows of the checks, so that windows cut and long rope factors begin within a batch.
WINDOW = 8
SHORT = 40

_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = _IDS | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
_GPT = _IDS | {"n_positions": POSITIONS, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
_DENSE = _SMALL | {"intermediate_size": 48, "num_key_value_heads": 2}
_HEADS = _DENSE | {"head_dim": 8}
_WINDOWS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_FOUR_LAYERS = {"num_hidden_layers": 4}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_LATENT = {
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16}
_CHUNK = {"mamba_chunk_size": 16}
_LONGROPE = {
    "max_position_embeddings": POSITIONS,
    "original_max_position_embeddings": SHORT,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": SHORT,
    },
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_PIXTRAL = _SIGLIP | {"model_type": "pixtral", "head_dim": 8}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}
_QWEN_PLACES = {
    "image_token_id": 185,
    "video_token_id": 186,
    "vision_start_token_id": 187,
    "vision_end_token_id": 188,
}
_GEMMA4 = _HEADS | _WINDOWS | _FOUR_LAYERS
_GEMMA4 |= {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 6,
    "num_kv_shared_layers": 2,
    "global_head_dim": 8,
}
_GEMMA4_EXPERTS = _GEMMA4 | {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
_GEMMA4_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
}
# The hub has keys and values of its own for layers that read those of an earlier one.
_SHARED_KEYS = tuple(
    (
        rf"(language_model|^model)\.layers\.{number}\.(self_attn\.(k_proj|v_proj|k_norm))",
        rf"\1.layers.{number + 2}.\2",
    )
    for number in (0, 1)
)
_GEMMA_PLACES = {"image_token_id": 181, "audio_token_id": 182, "video_token_id": 183}
_GEMMA_PLACES |= {"boi_token_id": 184, "eoi_token_id": 185, "boa_token_id": 186, "eoa_token_index": 187}


@dataclass(frozen=True)
class Family:
    """A family under the name that people use.

    `settings` go to the configuration of `model_type`. `architecture` names the class that transformers saves, if it
    is not the one of `AutoModelForCausalLM`. `smoke`: whether continuous integration tries it.
    """

    name: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    reference: Literal["eager", "sdpa"] = "eager"
    on_hub: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    fused_experts: bool = False
    smoke: bool = False

    @property
    def slug(self) -> str:
        """Return the name as a folder is called."""
        kept = "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())
        return "-".join(part for part in kept.split("-") if part)


_LLAMA4 = _HEADS | _FOUR_LAYERS
_LLAMA4 |= {
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 1, 1, 0],
    "attention_chunk_size": WINDOW,
}
_QWEN_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}
_QWEN_NEXT = _HEADS | _LINEAR | _QWEN_EXPERTS | {"shared_expert_intermediate_size": 16}
_QWEN_VL_TEXT = _DENSE | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
_QWEN35_ROPE = {
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
}
_DEEPSEEK = _SMALL | _LATENT
_DEEPSEEK |= {
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
_YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": POSITIONS // 4,
    }
}
_ALPHA = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 100.0, "factor": 1.0}}
_GROUPS = {"n_group": 2, "topk_group": 1}
_GRANITE = {
    "embedding_multiplier": 2.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES = (
    Family("Llama 2, 3", "llama", _DENSE, smoke=True),
    Family("Llama 3.2 (tied)", "llama", _HEADS | {"tie_word_embeddings": True}),
    Family("Llama 4 (text)", "llama4_text", _LLAMA4),
    Family("Mistral", "mistral", _HEADS | {"sliding_window": WINDOW}),
    Family("Ministral", "ministral", _HEADS | _WINDOWS),
    Family("Ministral 3 (text)", "ministral3", _HEADS),
    Family(
        "Ministral 3 (wrapper)",
        "mistral3",
        {
            "text_config": _HEADS | {"model_type": "ministral3"},
            "vision_config": _PIXTRAL,
            "image_token_index": 185,
            "spatial_merge_size": 2,
            "tie_word_embeddings": False,
        },
        architecture="Mistral3ForConditionalGeneration",
    ),
    Family("Mixtral", "mixtral", _HEADS | _LOCAL_EXPERTS),
    Family("Qwen2, 2.5", "qwen2", _DENSE),
    Family("Qwen2.5 0.5B (tied)", "qwen2", _DENSE | {"tie_word_embeddings": True}),
    Family("Qwen3", "qwen3", _HEADS),
    Family(
        "Qwen3-MoE",
        "qwen3_moe",
        _HEADS | _QWEN_EXPERTS | {"num_hidden_layers": 3, "mlp_only_layers": [0]},
        smoke=True,
    ),
    Family("Qwen3-Next", "qwen3_next", _QWEN_NEXT, copies=((r"^model\.layers\.1\.", "mtp.layers.0."),)),
    Family("Qwen3.5 (text)", "qwen3_5_text", _HEADS | _LINEAR | _QWEN35_ROPE, smoke=True),
    Family("Qwen3.5-MoE (text)", "qwen3_5_moe_text", _QWEN_NEXT | _QWEN35_ROPE),
    Family(
        "Qwen2.5-VL (wrapper)",
        "qwen2_5_vl",
        _QWEN_PLACES
        | {
            "text_config": _QWEN_VL_TEXT,
            "vision_config": _QWEN_VISION | {"fullatt_block_indexes": [0], "window_size": 16},
        },
        architecture="Qwen2_5_VLForConditionalGeneration",
    ),
    Family(
        "Qwen3.5 (wrapper)",
        "qwen3_5",
        _QWEN_PLACES
        | {
            "text_config": _HEADS | _LINEAR | _QWEN35_ROPE,
            "vision_config": _QWEN_VISION | {"num_position_embeddings": 16},
        },
        architecture="Qwen3_5ForConditionalGeneration", copies=((r"^model\.language_model\.layers\.1\.", "mtp.layers.0."),)),
    Family(
        "Qwen3.5-MoE (wrapper)",
        "qwen3_5_moe",
        _QWEN_PLACES
        | {
            "text_config": _QWEN_NEXT | _QWEN35_ROPE,
            "vision_config": _QWEN_VISION | {"num_position_embeddings": 16},
        },
        architecture="Qwen3_5MoeForConditionalGeneration",
        fused_experts=True,
        copies=((r"^model\.language_model\.layers\.1\.", "mtp.layers.0."),),
    ),
    Family("Gemma", "gemma", _HEADS),
    Family("Gemma 2", "gemma2", _HEADS | _WINDOWS | {"query_pre_attn_scalar": 8}),
    Family("Gemma 3 (text)", "gemma3_text", _HEADS | _WINDOWS | {"query_pre_attn_scalar": 8}),
    Family(
        "Gemma 3 (wrapper)",
        "gemma3",
        {
            "text_config": _HEADS | _WINDOWS | {"query_pre_attn_scalar": 8},
            "vision_config": _SIGLIP,
            "mm_tokens_per_image": 1,
            "image_token_index": 185,
            "boi_token_index": 186,
            "eoi_token_index": 187,
        },
        architecture="Gemma3ForConditionalGeneration",
        smoke=True, on_hub=((r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model."),)),
    Family(
        "Gemma 3n (text)",
        "gemma3n_text",
        _HEADS
        | _FOUR_LAYERS
        | {
            "intermediate_size": [48] * 4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 6,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        },
        copies=_SHARED_KEYS,
    ),
    Family("Gemma 4 (text)", "gemma4_text", _GEMMA4, copies=_SHARED_KEYS, smoke=True),
    Family("Gemma 4 MoE (text)", "gemma4_text", _GEMMA4_EXPERTS),
    Family(
        "Gemma 4 (wrapper)",
        "gemma4",
        _GEMMA_PLACES | {"text_config": _GEMMA4, "vision_config": _GEMMA4_VISION, "audio_config": None},
        architecture="Gemma4ForConditionalGeneration",
        copies=_SHARED_KEYS,
    ),
    Family("gpt-oss", "gpt_oss", _HEADS | _WINDOWS | _LOCAL_EXPERTS, smoke=True),
    Family("Phi-3, Phi-4", "phi3", _DENSE),
    Family("Phi-3, Phi-4 mini (longrope)", "phi3", _DENSE | _LONGROPE),
    Family("PhiMoE", "phimoe", _DENSE | _LOCAL_EXPERTS | {"router_jitter_noise": 0.01, "input_jitter_noise": 0.01}),
    Family("OLMo", "olmo", _DENSE),
    Family("OLMo 2", "olmo2", _DENSE),
    Family("OLMo 3", "olmo3", _DENSE | _WINDOWS),
    Family("OLMoE", "olmoe", _DENSE | {"num_experts": 4, "num_experts_per_tok": 2}),
    Family("SmolLM3", "smollm3", _DENSE | _FOUR_LAYERS | {"no_rope_layers": [1, 1, 1, 0]}),
    Family("Granite 3", "granite", _DENSE | _GRANITE),
    Family("Granite 3 MoE", "granitemoe", _DENSE | _GRANITE | _LOCAL_EXPERTS),
    Family(
        "Granite 4 (hybrid)",
        "granitemoehybrid",
        _DENSE | _GRANITE | _LOCAL_EXPERTS | _MAMBA | _CHUNK | {"layer_types": ["mamba", "attention"]}
        | {"shared_intermediate_size": 16},
    ),
    Family("Cohere 2", "cohere2", _DENSE | _WINDOWS | {"logit_scale": 0.5}),
    Family("GLM4", "glm4", _HEADS),
    Family("GLM4-MoE", "glm4_moe", _HEADS | _GROUPS | {
        "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "use_qk_norm": True,
    }, copies=((r"^model\.layers\.1\.", "model.layers.46."),)),
    Family("DeepSeek-V2", "deepseek_v2", _DEEPSEEK),
    Family("DeepSeek-V3", "deepseek_v3", _DEEPSEEK | _GROUPS | _YARN, smoke=True, copies=((r"^model\.layers\.1\.", "model.layers.61."),)),
    Family("MiniCPM3", "minicpm3", _SMALL | _LATENT | {"intermediate_size": 48, "dim_model_base": 16}),
    Family("LFM2", "lfm2", _DENSE | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    Family("Falcon (rope)", "falcon", _SMALL, copies=((r"^transformer\.word_embeddings\.", "lm_head."),)),
    Family("Falcon 40B (rope)", "falcon", _SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    # Its eager attention adds ALiBi's bias twice, to the scores and within the mask.
    Family("Falcon (ALiBi)", "falcon", _SMALL | {
        "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True,
    }, reference="sdpa"),
    Family("Falcon-H1", "falcon_h1", _DENSE | _MAMBA | _CHUNK | {"mamba_d_ssm": 64}),
    Family("Falcon-Mamba", "falcon_mamba", _IDS | {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
    Family("Mamba", "mamba", _IDS | {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
    Family("Mamba2", "mamba2", _IDS | {
        "hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 16,
        "num_hidden_layers": 2,
    }),
    Family("RecurrentGemma", "recurrent_gemma", _SMALL | {
        "intermediate_size": 48, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW,
        "num_key_value_heads": 1,
    }),
    Family("Jamba", "jamba", _DENSE | {
        "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2,
        "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8,
        "use_mamba_kernels": False,
    }),
    Family("Bamba", "bamba", _DENSE | _MAMBA | _CHUNK | {"attn_layer_indices": [1]}),
    Family("Zamba2", "zamba2", _SMALL | {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "mamba_d_state": 8,
        "n_mamba_heads": 4, "chunk_size": 16, "intermediate_size": 48, "num_mem_blocks": 1,
        "use_mamba_kernels": False, "adapter_rank": 4, "use_mem_rope": True,
    }),
    Family("Nemotron", "nemotron", _DENSE),
    Family("Nemotron-H", "nemotron_h", _HEADS | {
        "layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4, "ssm_state_size": 8,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
        "use_mamba_kernels": False,
    }, copies=((r"^backbone\.layers\.3\.", "mtp.layers.0."),)),
    Family("Ernie 4.5", "ernie4_5", _HEADS),
    Family("Ernie 4.5 MoE", "ernie4_5_moe", _DENSE | {
        "moe_intermediate_size": 16, "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    }, copies=((r"^model\.layers\.1\.", "model.mtp_block.0."),)),
    Family("Hunyuan", "hunyuan_v1_dense", _HEADS | _ALPHA),
    Family("Hunyuan MoE", "hunyuan_v1_moe", _HEADS | _ALPHA | {"num_experts": 4, "moe_topk": 2}),
    Family("Seed-OSS", "seed_oss", _HEADS),
    Family("EXAONE 4", "exaone4", _DENSE | _WINDOWS),
    Family("Apertus", "apertus", _DENSE),
    Family("GPT-2", "gpt2", _GPT, on_hub=((r"^transformer\.", ""),)),
    Family("GPT-J", "gptj", _GPT | {"rotary_dim": 4}),
    Family("GPT-Neo", "gpt_neo", _IDS | {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": POSITIONS, "window_size": WINDOW, "initializer_range": 0.2,
    }),
    Family("GPT-NeoX, Pythia", "gpt_neox", _SMALL | {"intermediate_size": 48}),
    Family("Bloom", "bloom", _IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}, on_hub=((r"^transformer\.", ""),)),
    Family("MPT", "mpt", _IDS | {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": POSITIONS, "initializer_range": 0.2}),
    Family("OPT", "opt", _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    Family("StableLM", "stablelm", _DENSE),
    Family("StarCoder 2", "starcoder2", _DENSE | {"sliding_window": WINDOW}),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
