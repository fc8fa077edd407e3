"""An answer's message is trained on as the chat template writes it, or refused by the name of what is left out."""

import re
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.models.templates import Chat
from allo.models.tokenization import prompt_ids, tokenize
from tokenizers_of_kinds import CHATML, EMPTY_THOUGHT, OPENED_THOUGHT, byte_level

ASKED = [{"role": "user", "content": "Name a tree."}]


def call(name: str = "look", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLING = {"role": "assistant", "content": "", "tool_calls": [call(city="Rome")]}
TWICE = {**CALLING, "tool_calls": [call(city="Rome"), call(city="Oslo")]}
BESIDE = {**CALLING, "content": "I will look."}
THINKING = {"role": "assistant", "content": "Oak.", "reasoning_content": "It is one."}

# The prompt's last header goes on before an answer (as gpt-oss); only the first call is written, and ends otherwise.
HARMONY = (
    "{% for m in messages %}{% if m.tool_calls %}{% if m.content %}<|start|>assistant<|message|>{{ m.content }}<|end|>"
    "{% endif %}<|start|>assistant to={{ m.tool_calls[0].function.name }}<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Calls stand instead of a text (as Llama 3), and end otherwise if `ipython` is set.
INSTEAD = (
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>{% if 'tool_calls' in m %}"
    "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}"
    "{% if ipython is defined %}<|eom|>{% else %}<|eot|>{% endif %}{% else %}{{ m.content }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>{% endif %}"
)
# The name of each call alone.
NAMED = CHATML.replace(
    "<|im_end|>", "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}<|im_end|>"
)
# The generation prompt writes an empty thought (as Qwen3 without thinking).
SETTLED = EMPTY_THOUGHT.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
SETTINGS = {"chat_template_kwargs": {"ipython": True}}


@pytest.mark.parametrize(
    ("template", "message", "settings", "written"),
    [
        (HARMONY, CALLING, {}, ' to=look<|message|>{"city": "Rome"}<|call|>'),
        (HARMONY, BESIDE, {}, '<|message|>I will look.<|end|><|start|>assistant to=look<|message|>{"city": "Rome"}<|call|>'),
        (HARMONY, THINKING, {}, "<|channel|>analysis<|message|>It is one.<|end|><|start|>assistant<|channel|>final<|message|>Oak.<|return|>"),
        (INSTEAD, CALLING, {}, '{"name": "look", "arguments": {"city": "Rome"}}<|eot|>'),
        (INSTEAD, CALLING, SETTINGS, '{"name": "look", "arguments": {"city": "Rome"}}<|eom|>'),
        (EMPTY_THOUGHT, THINKING, {}, "<think>\nIt is one.\n</think>\n\nOak.<|im_end|>"),
        (SETTLED, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}, {}, "[TOOL_CALLS]add<|im_end|>"),
        (OPENED_THOUGHT, {"role": "assistant", "content": "Oak."}, {}, "\n</think>\n\nOak.<|im_end|>"),
    ],
)  # fmt: skip
def test_a_message_is_trained_on_as_the_template_writes_it_with_its_own_end(
    template: str, message: dict[str, Any], settings: dict[str, Any], written: str
) -> None:
    tokenizer = byte_level(template)
    found = tokenize(tokenizer, ASKED, message, template=settings, max_length=1000)
    assert found is not None
    assert found.prompt_ids == prompt_ids(tokenizer, ASKED, template=settings)
    assert tokenizer.decode(found.completion_ids) == written
    cut = tokenize(tokenizer, ASKED, message, template=settings, finished=False, max_length=1000)
    assert cut is not None
    assert written.startswith(tokenizer.decode(cut.completion_ids))
    assert cut.completion_ids == found.completion_ids[:-1]


@pytest.mark.parametrize(
    ("template", "message", "what"),
    [
        (SETTLED, THINKING, "`reasoning_content` of the answer after the prompt, which ends with .*</think>"),
        (HARMONY, TWICE, "`tool_calls`"),
        (INSTEAD, BESIDE, "the `assistant` message beside `tool_calls`"),
        (NAMED, CALLING, "`tool_calls`"),
        (CHATML, CALLING, "`tool_calls`"),
        (CHATML, THINKING, "`reasoning_content`"),
        (INSTEAD.replace("tool_calls %}{{", "tool_calls[1:] %}{{"), TWICE, "`tool_calls`"),
    ],
)
def test_a_message_of_which_a_part_is_left_out_is_refused(
    template: str, message: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=f"^row 3: the chat template of .* does not write {what}"):
        tokenize(byte_level(template), ASKED, message, max_length=1000, place="row 3")


@pytest.mark.parametrize(
    ("template", "messages", "what"),
    [
        (INSTEAD, [*ASKED, BESIDE, {"role": "tool", "content": "sun"}], "the `assistant` message beside"),
        (NAMED, [*ASKED, CALLING, {"role": "tool", "content": "sun"}], "`tool_calls`"),
        (HARMONY, [*ASKED, TWICE, {"role": "tool", "content": "sun"}], "`tool_calls`"),
        (
            CHATML.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}{{ m.tool_calls }}"),
            [*ASKED, BESIDE, *ASKED],
            "the `assistant` message beside",
        ),
        (
            CHATML.replace("{{ m.content }}", "{% if m.content %}{{ m.content }}{% else %}{{ m.tool_calls }}{% endif %}"),
            [*ASKED, BESIDE, *ASKED],
            "`tool_calls`",
        ),
        (
            CHATML.replace("messages %}", "messages if m.role != 'assistant' %}"),
            [*ASKED, {"role": "assistant", "content": "Oak."}, *ASKED],
            "the `assistant` message",
        ),
        (CHATML.replace("messages %}", "messages[-1:] %}"), [*ASKED, *ASKED], "the `user` message"),
    ],
)  # fmt: skip
def test_a_prompt_of_which_a_text_or_a_call_is_left_out_is_refused(
    template: str, messages: list[dict[str, Any]], what: str
) -> None:
    with pytest.raises(UserError, match=f"^row 3: the chat template of .* does not write {what}"):
        prompt_ids(byte_level(template), messages, place="row 3")


def test_thoughts_of_earlier_turns_may_be_left_out_under_any_name_of_transformers() -> None:
    """It gives a template a thought under `reasoning_content`, too."""
    for field in ("reasoning_content", "thinking", "reasoning"):
        said = {"role": "assistant", "content": "Oak.", field: "It is one."}
        ids = prompt_ids(byte_level(EMPTY_THOUGHT), [*ASKED, said, *ASKED])
        assert ids == prompt_ids(byte_level(EMPTY_THOUGHT), [*ASKED, {**said, field: None}, *ASKED])
        with pytest.raises(UserError, match=f"does not write `{field}`"):
            prompt_ids(byte_level("{# enable_thinking reasoning_content #}" + CHATML), [*ASKED, said, *ASKED])


SWITCHED = (
    "{% if enable_thinking is defined and enable_thinking is false %}/no {% endif %}"
    "{% if day is not defined %}{% set day = 'Monday' %}{% endif %}{{ day }}\nToday's date and reasoning:\n"
    "{% set style = style | default('plain') %}{% set effort = 'low' %}{{ style }}"
    "{% for m in messages %}{% set thought = m.reasoning_content %}{% generation %}{{ thought }}{% endgeneration %}{% endfor %}"
)


@pytest.mark.parametrize("known", [{"enable_thinking": True}, {"day": "Monday"}, {"style": "plain"}])
def test_a_variable_that_a_template_reads_may_have_its_usual_value(known: dict[str, Any]) -> None:
    tokenizer = byte_level(SWITCHED + CHATML)
    settings = {"chat_template_kwargs": known}
    assert prompt_ids(tokenizer, ASKED, template=settings) == prompt_ids(tokenizer, ASKED)


@pytest.mark.parametrize(
    "name", ["thinking", "date", "reasoning", "enable", "effort", "content", "thought", "m"]
)
def test_a_variable_that_a_template_only_has_in_its_words_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"does not write `{name}` of `chat_template_kwargs`"):
        prompt_ids(byte_level(SWITCHED + CHATML), ASKED, template={"chat_template_kwargs": {name: False}})


def test_messages_of_known_models_are_trained_on_as_their_templates_write_them_or_refused() -> None:
    trl = pytest.importorskip("trl", reason="TRL ships the templates; install the extra `trl`")
    trained = 0
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        if path.stem.endswith("training") or path.stem.startswith(("llava", "idefics", "smolvlm")):
            continue
        tokenizer = byte_level(source := path.read_text(encoding="utf-8"))
        tags = sorted({tag for tag in re.findall(r"<\|?\w+\|?>", source) if "|" in tag})
        tokenizer.add_special_tokens({"additional_special_tokens": tags})
        for message in (CALLING, TWICE, BESIDE, THINKING, {**THINKING, "tool_calls": CALLING["tool_calls"]}):
            try:
                found = tokenize(tokenizer, ASKED, message, max_length=100_000)
            except UserError:
                continue
            assert found is not None
            text = tokenizer.decode(found.prompt_ids + found.completion_ids).removesuffix("</s>")
            own = Chat(tokenizer, ASKED).text(message)
            if path.stem.startswith(
                ("nemotron", "deepseek")
            ):  # the prompt opens a thought, and the answer has none
                text, own = (
                    each.replace("<think>\n\n</think>\n\n", "<think></think>") for each in (text, own)
                )
                text = text.replace("<think>\n</think>", "<think></think>")
            assert own.replace("</s>", "").strip().startswith(text.strip()), path.stem
            for written in (message["content"], message.get("reasoning_content", "")):
                assert written in text
            for name in ("Rome", "Oslo"):
                assert (name in text) == (name in str(message)), path.stem
            trained += 1
    assert trained > 60
