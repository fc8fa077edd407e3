"""Tiny random checkpoints of families whose weights have other names or shapes on disk than in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tiny import TOKENIZER

_IDS = {
    "vocab_size": len(TOKENIZER),
    "bos_token_id": TOKENIZER.bos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
    "initializer_range": 0.2,
}
_SMALL = _IDS | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_HEADS = _SMALL | {"head_dim": 8}
_LOCAL = {"num_local_experts": 3, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_ROUTED |= {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
_LATENT = {"kv_lora_rank": 6, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_SEES = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
_LINEAR |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
_QWEN_VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "patch_size": 4}
_QWEN_VISION |= {"out_hidden_size": 16}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "mixtral": _HEADS | _LOCAL,
    "qwen3_moe": _HEADS | _EXPERTS | {"mlp_only_layers": [0], "norm_topk_prob": True},
    "olmoe": _SMALL | {"num_experts": 3, "num_experts_per_tok": 2},
    "deepseek_v3": _SMALL | _LATENT | _ROUTED,
    "gpt_neox": {name: value for name, value in _SMALL.items() if name != "num_key_value_heads"},
    "granitemoe": _SMALL | _LOCAL,
    "phimoe": _HEADS | _LOCAL,
    "glm4_moe": _HEADS | _ROUTED,
    "ernie4_5_moe": _SMALL
    | {"moe_intermediate_size": 8, "moe_k": 2, "moe_num_experts": 3, "moe_num_shared_experts": 1},
    "hunyuan_v1_moe": _HEADS | {"num_experts": 3, "moe_topk": 2},
    "gpt_oss": _HEADS | _LOCAL,
    "gemma4_text": _HEADS
    | {
        "vocab_size_per_layer_input": len(TOKENIZER),
        "hidden_size_per_layer_input": 4,
        "num_kv_shared_layers": 0,
        "global_head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3": {
        "text_config": _HEADS | {"query_pre_attn_scalar": 8, "sliding_window": 64},
        "vision_config": _VISION | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 1,
        "image_token_index": 5,
        "boi_token_index": 6,
        "eoi_token_index": 7,
    },
    "qwen2_5_vl": _SEES
    | {
        "text_config": _HEADS | _MROPE,
        "vision_config": _QWEN_VISION | {"fullatt_block_indexes": [0], "window_size": 16},
    },
    "qwen3_5": _SEES
    | {
        "text_config": _HEADS | _MROPE | _LINEAR,
        "vision_config": _QWEN_VISION | {"num_position_embeddings": 16},
    },
}
# Families whose authors stored the body alone, in whose names there is no prefix, and others that may be stored so.
BARE: Mapping[str, Mapping[str, Any]] = {
    "gpt2": _IDS | {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "bloom": _IDS | {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "llama": _SMALL | {"tie_word_embeddings": False},
}
# Families whose head is the embedding.
TIED: Mapping[str, Mapping[str, Any]] = {
    "falcon": {name: value for name, value in _SMALL.items() if "intermediate" not in name},
    "mistral": _SMALL | {"tie_word_embeddings": True},
}
# The class that people load the checkpoint with, if AutoModelForCausalLM gives another or none.
WHOLE = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
}
WRAPPERS = tuple(WHOLE)


def built(family: str) -> PreTrainedModel:
    """A model of random weights, made from its configuration; vectors and buffers are not at their neutral values."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(FAMILIES | BARE | TIED)[family])
    kind: Any = getattr(transformers, WHOLE.get(family, ""), None)
    model: PreTrainedModel = kind(config) if kind else AutoModelForCausalLM.from_config(config)
    stored = model.state_dict().keys()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in stored and tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape)
    return model.eval()


def saved(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The checkpoint and the laboratory's tokenizer."""
    built(family).to(dtype).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def bare(family: str, folder: Path) -> Path:
    """The checkpoint as its authors stored it: the body's names have no prefix. GPT-2's has its causal masks besides."""
    prefix = f"{built(family).base_model_prefix}."
    tensors = load_file(saved(family, folder) / "model.safetensors")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if family == "gpt2":
        tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril().byte() for layer in range(2)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def doubled(family: str, folder: Path) -> Path:
    """The checkpoint with its tied head stored beside the embedding, as Falcon-7B's is."""
    model = built(family)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight
    (name,) = (name for name, module in model.named_modules() if module is embedding)
    place = saved(family, folder) / "model.safetensors"
    tensors = load_file(place)
    save_file(tensors | {"lm_head.weight": tensors[f"{name}.weight"].clone()}, place, {"format": "pt"})
    return folder


def plain(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The whole model as transformers alone loads it."""
    kind: Any = getattr(transformers, WHOLE.get(family, "AutoModelForCausalLM"))
    model: PreTrainedModel = kind.from_pretrained(folder, dtype=dtype)
    return model.eval()
