"""The kind of a file's rows: told by columns, or refused with what was found and what each kind needs."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from allo.errors import UserError
from allo.tasks.feedback import read_feedback
from allo.tasks.row_kinds import NEEDS, kind_of_rows

CHAT = [{"role": "user", "content": "Name a tree."}]
SAID = [{"role": "assistant", "content": "Oak."}]
PAIR = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Rock."}
RATED = {"prompt": "Name a tree.", "completions": ["Oak.", "Rock."], "scores": [1.0, 0.0]}
LABELLED = {"prompt": "Name a tree.", "completion": "Oak.", "label": True}


def write(folder: Path, *given: Any) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([PAIR], "pairs"),
        ([{"chosen": "Q: a", "rejected": "Q: b"}], "pairs"),
        ([{**PAIR, "answer": "Oak", "label": 1, "completions": ["x"], "scores": [1]}], "pairs"),
        ([{"input": {"messages": CHAT}, "preferred_output": SAID, "non_preferred_output": SAID}], "pairs"),
        ([{"conversations": [], "chosen": {"from": "gpt", "value": "a"}, "rejected": {}}], "pairs"),
        ([RATED], "rated"),
        ([{"prompt": "Q", "completions": ["a", "b"], "ranks": [1, 2]}], "rated"),
        ([{"instruction": "Q", "completions": [{"response": "a", "overall_score": 5}]}], "rated"),
        ([{"prompt": CHAT, "completions": [SAID], "rank": [1]}], "rated"),
        ([LABELLED], "feedback"),
        ([{**LABELLED, "label": 0}, LABELLED], "feedback"),
        ([{"prompt": "Q", "completion": "a", "label": "False"}], "feedback"),
        ([{"messages": [*CHAT, *SAID], "label": False}], "feedback"),
        ([{"prompt": "Q", "answer": 4}], "problems"),
        ([{"prompt": "Q"}, {"prompt": "R", "answer": "4"}, {"prompt": "S", "answer": None}], "problems"),
        ([{"prompt": CHAT}], "prompts"),
        ([{"messages": CHAT}, {"conversations": CHAT}, {"instruction": "Q"}], "prompts"),
        ([{"prompt": "Q", "answer": None, "chosen": None, "label": "animal"}], "prompts"),
        ([{"prompt": "Q"}] * 100 + [PAIR], "prompts"),
        ([{"prompt": "Q"}, PAIR], "pairs"),  # a row that lacks an answer, which its reader names
        ([{"question": "Q", "reply": "a"}, LABELLED, {}], "feedback"),
    ],
)
def test_the_first_rows_columns_say_the_kind(tmp_path: Path, rows: list[Any], kind: str) -> None:
    assert kind_of_rows(write(tmp_path, *rows)) == kind_of_rows(str(tmp_path / "mine.jsonl")) == kind


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{}], "jsonl:1: .*found no columns"),
        ([{"text": "Q"}], "jsonl:1: .*found `text`"),
        ([{"prompt": "Q", "chosen": "a"}], "jsonl:1: .*found `chosen`, `prompt`"),
        ([{"prompt": "Q", "chosen": "a", "rejected": None}], r"`prompt`, `rejected` \(empty\)\."),
        ([{"prompt": "Q", "completions": ["a", "b"]}], "jsonl:1: .*found `completions`, `prompt`"),
        ([{"prompt": "Q", "completions": "a", "scores": [1]}], "found `completions`, `prompt`, `scores`"),
        ([PAIR, RATED], r"several kinds \(.*jsonl:1: pairs, .*jsonl:2: rated\)"),
        ([{"prompt": "Q", "answer": "4"}, LABELLED], r"jsonl:2: feedback, .*jsonl:1: problems"),
        ([{"prompt": "Q", "completion": "a", "label": "good"}], "jsonl:1: `label` 'good': must be true or false"),
        ([{"prompt": "Q", "completion": "a", "label": 0.5}], "jsonl:1: `label` 0.5"),
    ],
)  # fmt: skip
def test_rows_of_no_kind_or_of_several_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind_of_rows(write(tmp_path, *rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.jsonl", "one\ntwo\n", r"mine.jsonl:1: not JSON .* None of the 2 rows can be used"),
        ("mine.jsonl", '["one"]\n', r"mine.jsonl:1: a JSON list"),
        (
            "mine.jsonl",
            "[\n" + '{"prompt": "Q"},\n' * 3 + "]\n",
            r"mine.jsonl:1: not JSON .* None of the 5 rows",
        ),
        ("mine.json", '["one", 2]', r"mine.json, row 1: a JSON str"),
        ("mine.csv", "prompt,chosen\na\nb\n", r"mine.csv:2: 1 cells, and the header has 2"),
    ],
)
def test_a_file_without_a_row_that_can_be_read_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        kind_of_rows(tmp_path / name)


def test_the_error_says_what_each_kind_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        kind_of_rows(write(tmp_path, {"text": "Q"}))
    assert all(f"{kind}: {columns}" in str(refused.value) for kind, columns in NEEDS.items())


def test_a_data_set_of_the_hub_is_read_by_its_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: [PAIR if split == "train" else RATED])
    monkeypatch.chdir(tmp_path)
    assert kind_of_rows("org/name-v1.5") == "pairs"
    assert kind_of_rows("org/name-v1.5", split="test") == kind_of_rows(Path("org/name"), split="x") == "rated"


@pytest.mark.parametrize("name", ["org/mine.jsonl", "org/mine.txt", "/org/name", "name", "a/b/c"])
def test_a_missing_file_is_not_looked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = "unknown file type" if name.endswith(".txt") else "there is no such file"
    with pytest.raises(UserError, match=kind):
        kind_of_rows(name)


def test_a_folder_that_is_here_is_not_looked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="org/name"):
        kind_of_rows("org/name")


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("prompt,chosen,rejected\nQ,a,b\n", "pairs"),
        ("prompt,completion,label\nQ,a,TRUE\nQ,b,0\n", "feedback"),
        ("prompt,answer\nQ,\nR,4\n", "problems"),
        ("instruction,input,output\nQ,,a\n", "prompts"),
    ],
)
def test_a_table_has_a_kind_too(tmp_path: Path, table: str, kind: str) -> None:
    (tmp_path / "mine.csv").write_text(table)
    assert kind_of_rows(tmp_path / "mine.csv") == kind
    if kind == "feedback":
        rows, _ = read_feedback(tmp_path / "mine.csv")
        assert [row.label for row in rows] == [True, False]
