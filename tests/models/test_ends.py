"""The end of an answer: a token of the chat template, never a line break or a word."""

import pytest

from allo.models.tokenization import tokenize, turn_end_ids
from tokenizers_of_kinds import CHATML, LLAMA_3, NO_END, PHI, ZEPHYR, byte_level, with_blank_tokens

ASKED = [{"role": "user", "content": "Name a tree."}]
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ALPACA = (
    "{% for m in messages %}### {{ 'Instruction' if m.role == 'user' else 'Response' }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "end"),
    [(GEMMA, "<end_of_turn>"), (CHATML, "<|im_end|>"), (LLAMA_3, "<|eot|>"), (PHI, "<|end|>"), (ZEPHYR, "</s>")],
)  # fmt: skip
def test_line_breaks_that_are_tokens_end_no_turn(template: str, end: str) -> None:
    tokenizer = with_blank_tokens(byte_level(template))
    assert tokenizer.convert_ids_to_tokens(turn_end_ids(tokenizer)) == [end]
    for answer in ("Oak.\nIt is.", "Oak.\n\nIt is."):
        for written in (answer, answer + end, f"{answer}{end}\n"):
            found = tokenize(tokenizer, ASKED, written, max_length=100)
            assert found is not None
            assert tokenizer.decode(found.completion_ids).lstrip() == answer + end


@pytest.mark.parametrize("template", [NO_END, ALPACA])
def test_a_template_without_an_end_ends_with_eos_whatever_tokens_are_added(template: str) -> None:
    tokenizer = with_blank_tokens(byte_level(template))
    assert turn_end_ids(tokenizer) == []
    found = tokenize(tokenizer, ASKED, "Oak.\nIt is.", max_length=100)
    assert found is not None
    assert tokenizer.decode(found.completion_ids) == "Oak.\nIt is.</s>"


def test_an_end_that_is_an_added_token_and_not_special_ends_a_turn() -> None:
    """Some tokenizers mark the ends of their templates so; a word that no template writes is none."""
    tokenizer = with_blank_tokens(byte_level(CHATML.replace("<|im_end|>", "[END]")))
    tokenizer.add_tokens(["[END]"])
    assert tokenizer.convert_ids_to_tokens(turn_end_ids(tokenizer)) == ["[END]"]
    found = tokenize(tokenizer, ASKED, "It is Oak", max_length=100)
    assert found is not None
    assert tokenizer.decode(found.completion_ids) == "It is Oak[END]"
