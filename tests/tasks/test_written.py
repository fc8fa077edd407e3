"""Rows with tools, documents, thoughts and calls, from file to token ids; fields that a template drops are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.artifacts import read_jsonl, write_jsonl
from allo.files.records import Pair, Wrong
from allo.models.rows import counted_completions, counted_pairs
from allo.sampling.at_servers import check_servable
from allo.sampling.completions import ids_of
from allo.tasks.pairing import rejected_completions
from allo.tasks.pairs import completions_of_rows, pairs_of_rows
from allo.tasks.prompts import PromptSource, read_prompts
from tokenizers_of_kinds import CHATML, LLAMA_2, byte_level

KNOWING = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for d in documents or [] %}<|doc|>{{ d.text }}\n{% endfor %}"
    "{% if style %}<|style|>{{ style }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<|call|>{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "sky"}}
CALL = {"type": "function", "function": {"name": "sky", "arguments": {"city": "Rome"}}}
ROW: dict[str, Any] = {
    "system": "Be brief.",
    "tools": [TOOL],
    "documents": [{"text": "A book."}],
    "chat_template_kwargs": {"style": "plain"},
    "prompt": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sun"},
    ],
    "chosen": [{"role": "assistant", "content": "Sunny.", "reasoning_content": "The tool says so."}],
    "rejected": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
}
RENDERED = (
    '<|tools|>[{"type": "function", "function": {"name": "sky"}}]\n<|doc|>A book.\n<|style|>plain\n'
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
    '<|im_start|>assistant\n<|call|>sky{"city": "Rome"}<|im_end|>\n'
    "<|im_start|>tool\nsun<|im_end|>\n<|im_start|>assistant\n"
)
CHOSEN = "<think>The tool says so.</think>Sunny.<|im_end|>"
REJECTED = '<|call|>sky{"city": "Rome"}<|im_end|>'


def test_a_pair_is_trained_on_as_the_template_renders_all_of_it(tmp_path: Path) -> None:
    tokenizer = byte_level(KNOWING, eos="<|im_end|>")
    pairs, _ = pairs_of_rows([ROW])
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    read = read_jsonl(tmp_path / "pairs.jsonl", Pair)
    assert read == pairs
    (ids,), _ = counted_pairs(tokenizer, [vars(pair) for pair in read], max_length=4000)
    said = {name: tokenizer.decode(ids[name]) for name in ids}
    assert said == {"prompt_ids": RENDERED, "chosen_ids": CHOSEN, "rejected_ids": REJECTED}


def test_a_rejected_completion_is_forgotten_as_it_was_rendered(tmp_path: Path) -> None:
    tokenizer = byte_level(KNOWING, eos="<|im_end|>")
    write_jsonl(tmp_path / "wrong.jsonl", rejected_completions(pairs_of_rows([ROW])[0], solutions={}))
    (wrong,) = read_jsonl(tmp_path / "wrong.jsonl", Wrong)
    (ids,), _ = counted_completions(tokenizer, [vars(wrong)], max_length=4000)
    assert tokenizer.decode(ids["prompt_ids"]) == RENDERED
    assert tokenizer.decode(ids["completion_ids"]) == REJECTED


def test_a_completion_in_memory_is_trained_on_as_a_pairs_side_is() -> None:
    tokenizer = byte_level(KNOWING, eos="<|im_end|>")
    rows, _ = completions_of_rows([{**ROW, "completion": ROW["chosen"]}])
    (ids,), _ = counted_completions(tokenizer, rows, max_length=4000)
    assert tokenizer.decode(ids["prompt_ids"] + ids["completion_ids"]) == RENDERED + CHOSEN


def test_a_prompt_is_sampled_from_with_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({name: ROW[name] for name in ROW if name not in ("chosen", "rejected")}))
    (prompt,) = read_prompts(PromptSource(file=path))
    tokenizer = byte_level(KNOWING, eos="<|im_end|>")
    assert tokenizer.decode(ids_of(tokenizer, prompt)) == RENDERED
    check_servable(prompt, 9, 4, api="completions")
    with pytest.raises(UserError, match="prompt mine-1: `tools` is not sent to a server's chat API"):
        check_servable(prompt, 9, 20, api="chat")


@pytest.mark.parametrize(
    ("template", "changed", "what"),
    [
        (CHATML, {"tools": [TOOL]}, "`tools`"),
        (CHATML, {"documents": [{"text": "x"}]}, "`documents`"),
        (CHATML, {"chat_template_kwargs": {"enable_thinking": False}}, "`enable_thinking` of `chat_template_kwargs`"),
        (CHATML, {"prompt": ROW["prompt"]}, "`tool_calls`"),
        (
            CHATML,
            {
                "prompt": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b", "thinking": "c"},
                    {"role": "user", "content": "d"},
                ]
            },
            "`thinking`",
        ),
        (
            "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            {"system": "Be brief."},
            "the `system` message",
        ),
        (
            "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ m.tool_calls }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            {"prompt": ROW["prompt"]},
            "the `tool` message",
        ),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused(template: str, changed: dict[str, Any], what: str) -> None:
    plain = {"role": "user", "content": "Name a tree."}
    row = {"prompt": [plain], "chosen": "Oak.", "rejected": "Rock."}
    pairs, _ = pairs_of_rows([row, {**row, **changed}])
    with pytest.raises(UserError, match=f"prompt rows-1: the chat template of .* does not write {what}"):
        counted_pairs(byte_level(template, eos="<|im_end|>"), [vars(pair) for pair in pairs], max_length=4000)


def test_text_and_plain_messages_pass() -> None:
    plain = [{"role": "user", "content": "Name a tree."}]
    pairs, _ = pairs_of_rows(
        [{"prompt": asked, "chosen": "Oak.", "rejected": "Rock."} for asked in ("Q", plain)]
    )
    for template in (CHATML, LLAMA_2, KNOWING):
        rows, _ = counted_pairs(byte_level(template), [vars(pair) for pair in pairs], max_length=4000)
        assert len(rows) == 2
