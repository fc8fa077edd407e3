"""Fields of messages that few templates know: written by the template, refused, or listed; and columns that may be the prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.artifacts import read_jsonl, write_jsonl
from allo.files.records import Pair
from allo.models.rows import counted_pairs
from allo.tasks.pairs import completions_of_rows, pairs_of_rows
from allo.tasks.prompts import PromptSource, read_prompts
from tiny_chat import TEMPLATE, chat_tokenizer

ASKED = {"role": "user", "content": "What colour?"}
SAID = {"role": "assistant", "content": "blue"}
TEXTS: list[tuple[str, Any]] = [
    ("tool_plan", "I will look it up."),
    ("citations", [{"start": 0, "text": "the sky"}]),
    ("thinking_blocks", [{"type": "thinking", "thinking": "The sky, so blue."}]),
    ("reasoning_details", {"text": "The sky, so blue."}),
    ("scratchpad", "因为天空"),
]


def row(where: str, **fields: Any) -> dict[str, Any]:
    prompt, chosen = [ASKED], [SAID]
    if where == "prompt":
        prompt = [ASKED, {**SAID, **fields}, ASKED]
    else:
        chosen = [{**SAID, **fields}]
    return {"prompt": prompt, "chosen": chosen, "rejected": [{"role": "assistant", "content": "green"}]}


@pytest.mark.parametrize("where", ["prompt", "chosen"])
@pytest.mark.parametrize(("field", "value"), TEXTS)
def test_text_in_a_message_is_written_by_the_template_or_refused(where: str, field: str, value: Any) -> None:
    pairs, reading = pairs_of_rows([row(where, **{field: value})])
    assert reading.ignored == ()
    rows = [vars(pair) for pair in pairs]
    with pytest.raises(UserError, match=f"does not write `{field}`"):
        counted_pairs(chat_tokenizer(), rows, max_length=400)
    knows = TEMPLATE.replace("{{ m['content'] }}", f"{{{{ m.get('{field}', '') }}}}{{{{ m['content'] }}}}")
    tokenizer = chat_tokenizer(template=knows)
    ((ids,), _) = counted_pairs(tokenizer, rows, max_length=400)
    written = tokenizer.decode(ids["prompt_ids"] + ids["chosen_ids"])
    assert f"{value}blue" in written


def test_a_field_of_text_comes_back_from_a_runs_file(tmp_path: Any) -> None:
    (pair,), _ = pairs_of_rows([row("prompt", tool_plan="I will look.")])
    write_jsonl(tmp_path / "pairs.jsonl", [pair])
    assert read_jsonl(tmp_path / "pairs.jsonl", Pair) == [pair]


def test_a_field_without_text_is_listed_and_does_not_tell_messages_apart() -> None:
    given = row("prompt", id="a-1", timestamp=12, done=True)
    ((pair,), reading) = pairs_of_rows([given])
    assert reading.ignored == ("prompt[].id", "prompt[].timestamp", "prompt[].done")
    assert pair == pairs_of_rows([row("prompt")])[0][0]


@pytest.mark.parametrize(
    ("field", "value", "usual"),
    [
        ("weight", 0, 1),
        ("weight", 0.5, 1.0),
        ("train", False, True),
        ("loss", False, True),
        ("training", 0, 1),
        ("prefix", True, False),
    ],
)
def test_an_answer_that_is_not_to_be_learned_as_a_whole_is_refused(
    field: str, value: Any, usual: Any
) -> None:
    with pytest.raises(UserError, match=f"row 0: the last message of `chosen` has `{field}`"):
        pairs_of_rows([row("chosen", **{field: value})])
    chat = [ASKED, {**SAID, field: value}]
    with pytest.raises(UserError, match=f"has `{field}`"):
        completions_of_rows([{"messages": chat}])
    assert pairs_of_rows([row("chosen", **{field: usual})])[0] == pairs_of_rows([row("chosen")])[0]
    assert pairs_of_rows([row("prompt", **{field: value})])[0] == pairs_of_rows([row("prompt")])[0]


SKY = {"chosen": "The sky is blue.", "rejected": "The sky is green."}


@pytest.mark.parametrize(
    "value",
    [
        "Say something true.",
        "Why?",
        "天空是什么颜色",
        ["Say something.", "Go on."],
        [{"role": "user", "content": "Hi"}],
        [{"from": "human", "value": "Hi"}],
        {"text": "Say something true."},
    ],
)
@pytest.mark.parametrize(
    "column", ["task", "text", "problem_statement", "topic", "story", "turns", "goal", "x"]
)
def test_no_prompt_is_inferred_beside_any_column_of_text(column: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"row 0: lacks `prompt`, .* rename `{column}` to `prompt`"):
        pairs_of_rows([{column: value, **SKY}])
    with pytest.raises(UserError, match=f"rename `{column}` to `prompt`"):
        pairs_of_rows([{column: value, "chosen": [SAID], "rejected": [{**SAID, "content": "red"}]}])


@pytest.mark.parametrize(
    "beside",
    [
        {
            "source": "reddit",
            "lang": "en",
            "url": "https://a.b/c?d=1".replace("?", "#"),
            "score": 3,
            "ok": True,
        },
        {"created": "2024-01-01 10:00:00", "id": "row 3", "user_id": "a b", "chosen_model": "GPT 4"},
        {"context": "The sky", "tags": ["a", "b"], "meta": {"source": "x", "n": 1}},
    ],
)
def test_a_prompt_is_inferred_beside_metadata_and_text_that_it_holds(beside: dict[str, Any]) -> None:
    ((pair,), reading) = pairs_of_rows([{**SKY, **beside}])
    assert pair.prompt == "The sky is"
    assert sum(reading.mapped.values()) == 1


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("history", [["Hi", "Hello."]]),
        ("chat_history", [{"role": "user", "content": "Hi"}]),
        ("image_path", "a.png"),
        ("pixel_values", [[0.5]]),
        ("inputImage", "a.png"),
        ("sys_prompt", "Be brief, please."),
        ("system_instruction", "Be brief, please."),
        ("SystemInstructions", "Be brief, please."),
        ("available_tools", [{"name": "look"}]),
        ("tool_definitions", "look up a word"),
        ("audio-url", "a.mp3"),
    ],
)
def test_a_column_that_looks_like_a_part_of_the_prompt_is_refused(
    column: str, value: Any, chat: bool, tmp_path: Path
) -> None:
    given = {"prompt": "The sky is ", "chosen": "blue.", "rejected": "red.", column: value}
    with pytest.raises(UserError, match=f"row 0: `{column}` looks like a part of the prompt"):
        pairs_of_rows([given], chat=chat)
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "The sky is ", column: value}))
    with pytest.raises(UserError, match=f"mine.jsonl:1: `{column}` looks like"):
        read_prompts(PromptSource(file=path, chat=chat))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tool", "search"),
        ("num_images", 0),
        ("operating_system", "Linux"),
        ("history_class", True),
        ("has_image", False),
    ],
)
def test_a_columns_word_alone_does_not_refuse_it(column: str, value: Any) -> None:
    given = {"prompt": "The sky is ", "chosen": "blue.", "rejected": "red.", column: value}
    _, reading = pairs_of_rows([given])
    assert reading.ignored == (column,)
