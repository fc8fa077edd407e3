"""A tiny Llama as a GGUF file."""

from pathlib import Path
from typing import Any

import tiny

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make(path: Path, *, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a tiny Llama; `changes` replace what the header says, `tensors` what a tensor holds."""
    import gguf

    model = tiny.model()
    config = model.config
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{a}.weight": f"blk.{layer}.{b}.weight" for a, b in PARTS.items()}
    vocabulary = sorted(tiny.TOKENIZER.get_vocab(), key=tiny.TOKENIZER.get_vocab().__getitem__)
    said = {
        "context_length": 64,
        "rope_freq_base": 10000.0,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": 2,
        "head_count_kv": 2,
        "vocab_size": len(vocabulary),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "token_list": vocabulary,
        "token_scores": [0.0] * len(vocabulary),
        "token_merges": None,
    } | changes
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    for key, value in said.items():
        if value is not None:
            getattr(writer, f"add_{key}")(value)
    for name, parameter in model.named_parameters():
        writer.add_tensor(names[name], (tensors or {}).get(names[name], parameter.detach().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
