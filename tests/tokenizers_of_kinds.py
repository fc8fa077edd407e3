"""Small tokenizers of every kind, with chat templates of every kind, made in memory."""

import re

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = ["Name a tree. Oak. Rock is it.", "the answer is 12, what is 5 + 7?", "A: 12 B: 4 it is"] * 5
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_HEADER = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
# The header has a line break that the generation prompt lacks.
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are terse.<|im_end|>\n{% endif %}" + CHATML
)
TWO_ENDS = CHATML.replace("<|im_end|>", "<|end_of_answer|><|im_end|>")
NO_END = (
    "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
# An empty thought stands before an answer without one (as Qwen3); thoughts of earlier turns are dropped.
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% set thought = m.reasoning_content or (parts[0].split('<think>')[-1].strip('\n') if parts[1:] else '') %}"
    "<think>\n{{ thought }}\n</think>\n\n{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content.split('</think>')[-1] }}"
    "{% endif %}{% for call in m.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}"
    "{% if call.function.arguments %}{{ call.function.arguments | tojson }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The generation prompt opens a thought, and a conversation drops it (as DeepSeek-R1).
OPENED_THOUGHT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def _special(template: str) -> list[str]:
    tags = ["<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>", "<|im_end|>"]
    return sorted({*tags, *re.findall(r"<\|[^<>{}\s]+\|>|<\w+_of_turn>|<turn\|>|\[TOOL_CALLS\]", template)})


def _wrapped(core: Tokenizer, template: str, eos: str, *, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", chat_template=template, eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": _special(template)})
    tokenizer.eos_token = eos
    return tokenizer


def byte_level(
    template: str = CHATML, *, eos: str = "</s>", bos: bool = False, vocabulary: int = 320
) -> PreTrainedTokenizerFast:
    """As GPT-2's: every text has ids, and a space belongs to the word after it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(CORPUS, _trainer(vocabulary, pre_tokenizers.ByteLevel.alphabet()))
    return _wrapped(core, template, eos, bos=bos)


def sentence_piece(
    template: str = CHATML, *, eos: str = "</s>", legacy: bool = False
) -> PreTrainedTokenizerFast:
    """As Llama 2's: a space that nobody wrote stands before a text, if `legacy` before each part of one."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    core.train_from_iterator(CORPUS, _trainer(220, [*map(chr, range(33, 127)), "\n", "ü", "▁"]))
    if legacy:
        core.pre_tokenizer = pre_tokenizers.Sequence([])
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return _wrapped(core, template, eos, bos=True)


def _trainer(vocabulary: int, alphabet: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )


def with_blank_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """As Gemma 2's: line breaks and spaces are tokens of their own, added and not special, and so is a word."""
    blank = ("\n", "\n\n", "\n\n\n", "  ", "▁▁", "\t", "Oak")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in blank])
    return tokenizer
