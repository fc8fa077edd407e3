"""Tiny random chat models with tokenizers that have special tokens, made in a second."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>", "<think>", "</think>", "[TOOL_CALLS]"]
WORDS = "user assistant Question: The answer is 4. 2+2? What colour is the sky blue green because so we add"


def chat_tokenizer(*, eos: str = "<|im_end|>", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose first ids are `SPECIAL`; its template ends a turn with <|im_end|>."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([WORDS] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token="<pad>", chat_template=template
    )


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind: a space before the first word, bytes for what it does not know."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdeginoqst"]
    vocabulary = {
        piece: id for id, piece in enumerate([*pieces, *(f"<0x{byte:02X}>" for byte in range(256))])
    }
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def save_chat_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, ends: list[int], **config: Any
) -> Path:
    """Save a random Llama of that tokenizer; `ends` are its generation config's EOS ids."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(LlamaConfig(**(sizes | config)))
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
