"""Rows whose training text could differ from their content: rendered, refused with line and field, or reported."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from allo.errors import UserError
from allo.files import row_files
from allo.tasks.pairs import completions_of_rows, pairs_and_reading, pairs_of_rows, read_pairs
from allo.tasks.prompts import PromptSource, prompts_and_reading, read_prompts

PLAIN = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Rock."}


def user(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def assistant(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


CHAT = {"prompt": [user("Name a tree.")], "chosen": [assistant("Oak.")], "rejected": [assistant("Rock.")]}
CALL = {"type": "function", "function": {"name": "w", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "w", "parameters": {}}}


def write(folder: Path, *given: dict[str, Any]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        *(({**CHAT, name: ["cat.png"]}, f"has `{name}`, and only text") for name in ("images", "videos", "audio")),
        ({**PLAIN, "image": "cat.png"}, "has `image`"),
        ({**PLAIN, "Images": ["cat.png"]}, "has `Images`"),
        ({**PLAIN, "chosen_token_ids": [1, -1]}, "`chosen_token_ids` .*greater than or equal to 0"),
        ({**PLAIN, "rejected_token_ids": [2**40]}, "`rejected_token_ids` .*less than 2147483648"),
        ({**CHAT, "chosen": [assistant("Oak.", Audio={"id": "a"})]}, "a message has `Audio`"),
        ({**CHAT, "System": "Be brief."}, "`System` is no column that is read; rename it to `system`"),
        ({**PLAIN, "TOOLS": [TOOL]}, "`TOOLS` is no column that is read; rename it to `tools`"),
        ({**CHAT, "prompt": [user("What?", images=["cat.png"])]}, "a message has `images`"),
        ({**CHAT, "chosen": [assistant("Oak.", audio={"id": "a"})]}, "a message has `audio`"),
        ({**CHAT, "prompt": [user([{"type": "image"}, {"type": "text", "text": "?"}])]}, "type 'image'"),
        ({**CHAT, "prompt": [user([{"type": "image_url", "image_url": {"url": "x"}}])]}, "type 'image_url'"),
        ({**CHAT, "rejected": [assistant([{"type": "input_audio"}])]}, "type 'input_audio'"),
        ({**CHAT, "prompt": [user(["text"])]}, "type 'str'"),
        *(({**PLAIN, name: [TOOL]}, f"`{name}` needs a chat template") for name in ("tools", "documents")),
        ({**PLAIN, "chat_template_kwargs": {"enable_thinking": True}}, "`chat_template_kwargs` needs a chat template"),
        ({**PLAIN, "system": "Be brief."}, "`system` needs a chat template"),
        ({**PLAIN, "system_prompt": "Be brief."}, "`system_prompt` needs a chat template"),
        ({**CHAT, "tool_calls": [CALL]}, "`tool_calls` is no column .* put it into the assistant's message"),
        ({**CHAT, "reasoning_content": "Hm."}, "`reasoning_content` is no column"),
        ({**CHAT, "thinking": True}, "`thinking` is no column .* `chat_template_kwargs`"),
        ({**CHAT, "enable_thinking": False}, "`enable_thinking` is no column .* `chat_template_kwargs`"),
        ({**CHAT, "functions": [TOOL]}, "`functions` is no column .* give them as `tools`"),
        ({**CHAT, "tools": "not JSON"}, "`tools`: not JSON"),
        ({**CHAT, "tools": {"a": 1}}, "`tools` .*must be a list of objects"),
        ({**CHAT, "tools": [1]}, "`tools` .*must be a list of objects"),
        ({**CHAT, "chat_template_kwargs": [1]}, "`chat_template_kwargs` .*must be an object"),
        ({**CHAT, "system": ["Be brief."]}, "`system` .*must be the text of a system message"),
        ({**CHAT, "system": "a", "system_prompt": "b"}, "has `system` and `system_prompt`"),
        ({**CHAT, "prompt": [{"role": "system", "content": "a"}, user("Q")], "system": "b"}, "`system` differs"),
        ({**CHAT, "chosen": [assistant("", function_call={"name": "w"})]}, "has `function_call`.*rename it to `tool_calls`"),
        ({**CHAT, "chosen": [assistant("Oak.", reasoning="Hm.")]}, "rename it to `reasoning_content`"),
        ({**CHAT, "chosen": [assistant("", tool_calls=[{"function": {"name": "w", "arguments": "{"}}])]}, "`arguments`: not JSON"),
        ({**CHAT, "chosen": [assistant("", tool_calls="w")]}, "`tool_calls` inside: .*valid list"),
        ({**CHAT, "chosen": [assistant(None)]}, "`content` inside: Field required"),
        ({**CHAT, "chosen": [assistant("")]}, "`chosen` has no completion"),
        ({"conversations": [{"from": "human", "value": "Q"}], "chosen": "a b", "rejected": "a c"}, "not guessed beside `conversations`"),
        ({**CHAT, "prompt": [user("Q"), {"from": "human", "value": "R"}]}, "rename them to `role`"),
        ({"prompt": "Q", "completion": "x", "label": True}, "labelled feedback .as for KTO., whose labels would be lost"),
    ],
)  # fmt: skip
def test_a_pair_that_would_lose_something_is_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, PLAIN, row)
    with pytest.raises(UserError, match=rf"mine\.jsonl:2: .*{message}"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "images": ["cat.png"]}, "has `images`"),
        ({"prompt": [user("Q", videos=["v"])]}, "a message has `videos`"),
        ({"prompt": "Q", "tools": [TOOL]}, "`tools` needs a chat template"),
        ({"prompt": "Q", "system": "Be brief."}, "`system` needs a chat template"),
        ({"prompt": "Q", "completion": "x", "label": 0}, "labelled feedback"),
    ],
)
def test_a_prompt_that_would_lose_something_is_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"mine\.jsonl:1: .*{message}"):
        read_prompts(PromptSource(file=write(tmp_path, row)))


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize("name", ["tools", "images", "system", "audio", "thinking", "tool_calls"])
def test_an_empty_field_counts_as_absent(empty: Any, name: str) -> None:
    for row in (PLAIN, CHAT):
        assert pairs_of_rows([{**row, name: empty}])[0] == pairs_of_rows([row])[0]
    inside = {**CHAT, "prompt": [user("Name a tree.", **{name: empty})]}
    assert pairs_of_rows([inside])[0] == pairs_of_rows([CHAT])[0]


@pytest.mark.parametrize("chat", [False, True])
def test_what_a_template_can_render_is_carried_along(chat: bool) -> None:
    asked = [
        user("Weather?"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "sun", "name": "w", "tool_call_id": "1"},
    ]
    said = assistant("Sunny.", reasoning_content="The tool says so.")
    settings = {"tools": [TOOL], "documents": [{"text": "x"}], "chat_template_kwargs": {"a": 1}}
    row = {
        "prompt": asked,
        "chosen": [said],
        "rejected": [assistant("Rain.")],
        "system": "Be brief.",
        **settings,
    }
    as_text = {name: json.dumps(value) for name, value in settings.items()}
    for each in (row, row | as_text):
        ((pair,), _) = pairs_of_rows([each], chat=chat)
        assert pair.prompt == [{"role": "system", "content": "Be brief."}, *asked]
        assert pair.template == settings
        assert (pair.chosen, pair.chosen_message) == ("Sunny.", said)
        assert (pair.rejected, pair.rejected_message) == ("Rain.", None)
    ((completion,), _) = completions_of_rows([{**row, "completion": [said]}], chat=chat)
    assert (completion["prompt"], completion["message"]) == (pair.prompt, said)
    assert completion["template"] == settings


def test_chat_gives_a_text_its_system_message_and_tools(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Name a tree.\n", "system": "Be brief.", "tools": [TOOL]})
    (prompt,) = read_prompts(PromptSource(file=path, chat=True))
    assert prompt.prompt == [{"role": "system", "content": "Be brief."}, user("Name a tree.")]
    assert prompt.template == {"tools": [TOOL]}


def test_arguments_as_json_text_are_read_as_templates_expect_them() -> None:
    call = {"type": "function", "function": {"name": "w", "arguments": '{"city": "Rome"}'}}
    row = {**CHAT, "chosen": [assistant("", tool_calls=[call])]}
    ((pair,), _) = pairs_of_rows([row])
    assert pair.chosen_message == assistant("", tool_calls=[CALL])


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "tree.", "image_url": None}]
    assert pairs_of_rows([{**CHAT, "prompt": [user(parts)]}])[0] == pairs_of_rows([CHAT])[0]


def test_a_line_of_a_runs_own_pairs_is_read_as_it_was_written() -> None:
    said = assistant("Sunny.", reasoning_content="It is.")
    first, _ = pairs_of_rows([{**CHAT, "chosen": [said], "tools": [TOOL]}])
    assert pairs_of_rows([vars(first[0])])[0] == first


def test_other_columns_and_fields_are_listed_once(tmp_path: Path) -> None:
    given = [{**CHAT, "prompt": [user("Q", weight=1)], "meta": n, "source": None} for n in range(3)]
    path = write(tmp_path, *given, {**PLAIN, "source": "x"})
    assert pairs_and_reading(path)[1].ignored == ("meta", "prompt[].weight", "source")


def test_pairs_with_equal_sides_and_repeated_rows_are_counted(tmp_path: Path) -> None:
    equal = {**PLAIN, "rejected": "Oak. "}
    pairs, reading = pairs_and_reading(
        write(tmp_path, PLAIN, equal, PLAIN, {**CHAT, "rejected": CHAT["chosen"]})
    )
    assert [pair.prompt_id for pair in pairs] == ["mine-1", "mine-3"]
    assert (reading.rows, reading.duplicates, sum(reading.dropped.values())) == (4, 1, 2)
    assert any("2 rows dropped: `chosen` equals `rejected`" in said for said in reading.sentences)
    with pytest.raises(UserError, match="2 rows, and in all of them `chosen` equals `rejected`"):
        read_pairs(write(tmp_path, equal, equal))
    thoughts = [assistant("Oak.", thinking="a")], [assistant("Oak.", thinking="b")]
    assert len(pairs_of_rows([{**CHAT, "chosen": thoughts[0], "rejected": thoughts[1]}])[0]) == 1


def test_repeated_prompts_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Q", "id": "a"}, {"prompt": "Q", "id": "b"}, {"prompt": "R"})
    assert prompts_and_reading(PromptSource(file=path))[1].duplicates == 1
    assert prompts_and_reading(PromptSource(file=path, skip=1))[1].duplicates == 0


def test_rows_in_memory_are_named_by_their_number() -> None:
    with pytest.raises(UserError, match=r"^train_dataset, row 1: lacks `chosen`; found `prompt`"):
        pairs_of_rows([PLAIN, {"prompt": "Q"}], name="train_dataset")
    with pytest.raises(UserError, match="row 0: `chosen` has half of a surrogate pair"):
        pairs_of_rows([{**PLAIN, "chosen": "\ud83d"}])


def test_fields_that_arrow_fills_in_are_dropped() -> None:
    other = {"type": "function", "function": {"name": "v", "arguments": {"day": "Monday"}}}
    given = [{**CHAT, "chosen": [assistant("", tool_calls=[call])], "images": None} for call in (CALL, other)]
    pairs, _ = pairs_of_rows(datasets.Dataset.from_list(given))
    assert [pair.chosen_message for pair in pairs] == [
        assistant("", tool_calls=[each]) for each in (CALL, other)
    ]


def test_a_parquet_files_nested_columns_are_read_as_json_lines_are(tmp_path: Path) -> None:
    given = [
        {**CHAT, "tools": [TOOL | {"strict": True}]},
        {**CHAT, "chosen": [assistant("Elm.", thinking="Hm.")]},
    ]
    lines, path = read_pairs(write(tmp_path, *given)), tmp_path / "mine.parquet"
    given[0]["tools"][0]["function"] = {"name": "w", "parameters": None}  # Parquet has no empty objects
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), path)
    pairs = read_pairs(path)
    assert [pair.chosen_message for pair in pairs] == [None, assistant("Elm.", thinking="Hm.")]
    assert [pair.prompt for pair in pairs] == [pair.prompt for pair in lines]
    assert pairs[0].template == {"tools": [{"type": "function", "function": {"name": "w"}, "strict": True}]}


ROW = json.dumps(PLAIN).encode()


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + ROW, ROW + b"\r\n", b"\n\r\n \n" + ROW + b"\n\n", ROW, b"\xef\xbb\xbf\n" + ROW],
)
def test_byte_order_marks_line_ends_and_blank_lines_are_harmless(tmp_path: Path, content: bytes) -> None:
    for name in ("mine.jsonl", "mine.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert [pair.chosen for pair in read_pairs(path)] == ["Oak."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW.decode().encode("utf-16"), ":1: UTF-16 text, or a damaged file; save it as UTF-8"),
        (ROW.decode().encode("utf-16-le"), ":1: UTF-16 text, or a damaged file"),
        (ROW + b"\n" + bytes(20), ":2: UTF-16 text, or a damaged file"),
        (ROW + b"\n\xff{}", ":2: no UTF-8 text"),
        (gzip.compress(ROW, mtime=0), r":1: gzip data; let the file's name end with \.jsonl\.gz"),
        (b"[\n" + ROW + b"\n]", ":1: not JSON .* Write one JSON object a line"),
        (b"[" + ROW + b"]", ":1: a JSON list; write one JSON object a line"),
        (
            b'{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}',
            ":1: `prompt` has half of a surrogate pair",
        ),
        (ROW.replace(b'"Oak."', b"NaN"), ":1: NaN is no number"),
        (ROW.replace(b'"prompt"', b'"chosen"'), ":1: the key 'chosen' is there twice"),
        (b"[" * 10_000, ":1: (nested more than|not JSON)"),
        (ROW[:-1] + b', "meta": ' + b"[" * 500 + b"]" * 500 + b"}", ":1: nested more than"),
        (b"{}\n" + b"x" * 3000, ":2: more than 0 MiB without a line break|:1: lacks"),
        (ROW + b"\n" + b"x" * 3000, ":2: more than 0 MiB without a line break"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(row_files, "LONGEST_LINE", 2000 if b"xxx" in content else 1 << 20)
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"mine\.jsonl{message}"):
        read_pairs(path)


def test_a_gzip_bomb_is_refused_by_its_first_long_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "LONGEST_LINE", 1 << 16)
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "' + b"x" * (1 << 24)))
    with pytest.raises(UserError, match=r"mine\.jsonl\.gz:1: more than 0 MiB without a line break"):
        read_pairs(path)


def test_a_column_that_is_twice_in_a_parquet_file_is_refused(tmp_path: Path) -> None:
    column = pyarrow.array(["x"])
    table = pyarrow.Table.from_arrays([column] * 3, names=["prompt", "chosen", "chosen"])
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    with pytest.raises(UserError, match=r"mine\.parquet: the column 'chosen' is there twice"):
        read_pairs(tmp_path / "mine.parquet")
