"""Prompts and pairs from users' files, and the errors for bad ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from trl.data_utils import extract_prompt

from allo.errors import UserError
from allo.files.records import Message, Pair, Prompt
from allo.recipe import Recipe
from allo.tasks.pairs import read_pairs
from allo.tasks.prompts import PromptSource, read_prompts
from allo.tasks.sources import training_pairs

CHAT: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "2 + 2?", "answer": "4", "solution": "The answer is 4.", "id": "four"},
    {"prompt": CHAT, "choices": ["3", "4"], "answer": "4", "note": "a further column"},
    {"prompt": "Say something."},
]
PROMPTS = [
    Prompt(id="four", prompt="2 + 2?", answer="4", solution="The answer is 4."),
    Prompt(id="mine-2", prompt=CHAT, choices=["3", "4"], answer="4"),
    Prompt(id="mine-3", prompt="Say something."),
]


def write(folder: Path, rows: list[Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz"])
def test_prompts_of_a_file(tmp_path: Path, name: str) -> None:
    assert read_prompts(PromptSource(file=write(tmp_path, ROWS, name))) == PROMPTS


def test_prompts_of_parquet(tmp_path: Path) -> None:
    rows = [row for row in ROWS if isinstance(row["prompt"], str)]
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_prompts(PromptSource(file=path)) == [
        PROMPTS[0],
        Prompt(id="mine-2", prompt="Say something."),
    ]
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"mine\.parquet: not readable as Parquet"):
        read_prompts(PromptSource(file=path))


def test_prompts_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, config, split: [{"prompt": f"{hub} {split}"}])
    (prompt,) = read_prompts(PromptSource(hub="org/set", split="test"))
    assert prompt == Prompt(id="set-test-0", prompt="org/set test")


def test_chat_wraps_text_and_leaves_messages(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "Why?\n"}, {"prompt": CHAT}])
    wrapped, left = read_prompts(PromptSource(file=path, chat=True))
    assert wrapped.prompt == [{"role": "user", "content": "Why?"}]
    assert left.prompt == CHAT


@pytest.mark.parametrize("order", ["given", "shuffled", "shortest"])
def test_skip_and_limit_take_a_slice_of_the_order(tmp_path: Path, order: Any) -> None:
    path = write(tmp_path, [{"prompt": f"Q{n}", "solution": "x" * (n % 7)} for n in range(40)])
    whole = read_prompts(PromptSource(file=path, order=order))
    assert read_prompts(PromptSource(file=path, order=order, skip=5, limit=9)) == whole[5:14]
    assert read_prompts(PromptSource(file=path, order=order, skip=35, limit=9)) == whole[35:]
    assert {p.id for p in whole} == {f"mine-{n}" for n in range(1, 41)}


def test_orders(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "solution": "x" * (n % 3), "id": f"i{n:02}"} for n in range(30)]
    path = write(tmp_path, rows)
    backwards = write(tmp_path, rows[::-1], "backwards.jsonl")
    shortest = read_prompts(PromptSource(file=path, order="shortest"))
    assert shortest == sorted(shortest, key=lambda prompt: (len(prompt.solution or ""), prompt.id))
    shuffled = read_prompts(PromptSource(file=path, order="shuffled", seed=1))
    assert shuffled == read_prompts(PromptSource(file=backwards, order="shuffled", seed=1))
    assert shuffled != read_prompts(PromptSource(file=path, order="shuffled", seed=2))
    assert shuffled != read_prompts(PromptSource(file=path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"mine\.jsonl: the file is empty"),
        ([ROWS[0], "{prompt"], r"mine\.jsonl:2: not JSON .*one JSON object a line"),
        (["[1]"], r"mine\.jsonl:1: a JSON list; write one JSON object"),
        ([ROWS[0], "", {"question": "Q"}], r"mine\.jsonl:3: lacks `prompt`; found `question`"),
        ([{"prompt": ""}], r"mine\.jsonl:1: `prompt` '': must not be empty"),
        ([{"prompt": "  \n"}], r"mine\.jsonl:1: `prompt` .*must not be empty"),
        ([{"prompt": []}], r"mine\.jsonl:1: `prompt` .*ends with what the user says"),
        ([{"prompt": 5}], r"mine\.jsonl:1: `prompt` 5: .*valid string"),
        ([{"prompt": [{"role": "user"}]}], r"mine\.jsonl:1: `prompt` .*: `content` inside: Field required"),
        ([{"prompt": [{"role": "robot", "content": "x"}]}], r"mine\.jsonl:1: `prompt` .*"),
        ([{"prompt": [*CHAT, {"role": "assistant", "content": "4"}]}], r"mine\.jsonl:1: `prompt`"),
        ([{"prompt": "Q", "answer": 2.5}], r"mine\.jsonl:1: `answer` 2.5: .*valid string"),
        ([{"prompt": "Q", "choices": "AB"}], r"mine\.jsonl:1: `choices` 'AB': .*valid list"),
        ([ROWS[0], ROWS[2], ROWS[0]], r"mine\.jsonl:3: the id 'four' is that of .*mine\.jsonl:1 too"),
    ],
)
def test_bad_rows_are_errors_that_name_the_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = write(tmp_path, rows)
    with pytest.raises(UserError, match=message):
        read_prompts(PromptSource(file=path))


def test_the_message_for_a_bad_chat_says_what_is_wrong_with_the_chat(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": [*CHAT, {"role": "assistant", "content": "4"}]}])
    with pytest.raises(UserError, match="ends with what the user says"):
        read_prompts(PromptSource(file=path))


def test_bad_sources_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"exactly one of `task`, `file`, `hub`; given: none"):
        read_prompts(PromptSource())
    with pytest.raises(UserError, match="given: task, file"):
        read_prompts(PromptSource(task="gsm8k", file=path))
    with pytest.raises(UserError, match=r"none\.jsonl: there is no such file"):
        read_prompts(PromptSource(file=tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"mine\.tsv: unknown file type; rows are read from \.jsonl"):
        read_prompts(PromptSource(file=write(tmp_path, ROWS, "mine.tsv")))
    with pytest.raises(UserError, match="no prompts left: 3 were found, skip is 3"):
        read_prompts(PromptSource(file=path, skip=3))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Q? ", "chosen": "yes", "rejected": "no"}, "Q? "),
        ({"prompt": "", "chosen": "Q? yes", "rejected": "Q? no"}, None),
        ({"chosen": "Q?yes", "rejected": "Q?no"}, "Q?"),
        ({"prompt": [user("Q?")], "chosen": "yes", "rejected": "no"}, [user("Q?")]),
        (
            {"prompt": [user("Q?")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
            [user("Q?")],
        ),
        (
            {"chosen": [user("Q?"), assistant("yes")], "rejected": [user("Q?"), assistant("no")]},
            [user("Q?")],
        ),
        (
            {
                "prompt": "Q?",
                "chosen": [user("Q?"), assistant("yes")],
                "rejected": [user("Q?"), assistant("no")],
            },
            [user("Q?")],
        ),
        (
            {
                "prompt": [user("Q?")],
                "chosen": [user("Q?"), assistant("yes")],
                "rejected": [user("Q?"), assistant("no")],
            },
            [user("Q?")],
        ),
        ({"prompt": "Q?", "chosen": [assistant("yes")], "rejected": [assistant("no")]}, [user("Q?")]),
        (
            {
                "chosen": [user("Hi"), assistant("Hi"), user("Q?"), assistant("yes")],
                "rejected": [user("Hi"), assistant("Hi"), user("Q?"), assistant("no")],
            },
            [user("Hi"), assistant("Hi"), user("Q?")],
        ),
    ],
)
def test_pairs_in_trls_formats(tmp_path: Path, row: dict[str, Any], prompt: Any) -> None:
    path = write(tmp_path, [row])
    if prompt is None:
        with pytest.raises(UserError, match=r"mine\.jsonl:1: `prompt` is empty"):
            read_pairs(path)
        return
    assert read_pairs(path) == [Pair(prompt_id="mine-1", prompt=prompt, chosen="yes", rejected="no")]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: Hi.\n\nAssistant: Hello.", "\n\nHuman: Hi.\n\nAssistant: Go away."),
        ("The sky is blue.", "The sky is green."),
        ([user("Hi"), assistant("Hello")], [user("Hi"), assistant("Go")]),
    ],
)
def test_an_implicit_prompt_is_what_trl_extracts(tmp_path: Path, chosen: Any, rejected: Any) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    theirs = extract_prompt(row)
    (ours,) = read_pairs(write(tmp_path, [row]))
    assert ours.prompt == theirs["prompt"]
    for mine, its in ((ours.chosen, theirs["chosen"]), (ours.rejected, theirs["rejected"])):
        assert mine == (its if isinstance(its, str) else its[0]["content"])


def test_ids_and_finished_marks_of_pairs(tmp_path: Path) -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    marked = {**row, "prompt_id": "p7", "rejected_finished": False}
    first, second = read_pairs(write(tmp_path, [row, marked], "mine.jsonl.gz"))
    assert (first.prompt_id, first.chosen_finished, first.rejected_finished) == ("mine-1", True, True)
    assert (second.prompt_id, second.chosen_finished, second.rejected_finished) == ("p7", True, False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "chosen": "a"}, r"mine\.jsonl:2: lacks `rejected`; found `chosen`, `prompt`"),
        ({"prompt": "Q", "chosen": "", "rejected": "b"}, r":2: `chosen` has no completion"),
        ({"prompt": "Q", "chosen": "a", "rejected": " \n"}, r":2: `rejected` has no completion"),
        ({"chosen": "Q: a", "rejected": "Q: a b"}, r":2: `chosen` has no completion"),
        ({"chosen": "yes", "rejected": "no"}, r":2: lacks `prompt`"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, r":2: lacks `prompt`"),
        ({"prompt": "Q", "chosen": [assistant("a")], "rejected": "b"}, r":2: .*both be strings or both"),
        ({"chosen": [user("Q")], "rejected": [user("Q")]}, r":2: .*end with an assistant's message"),
        (
            {"chosen": [user("Q"), assistant("a")], "rejected": [user("R"), assistant("b")]},
            r":2: .*differ before their last message",
        ),
        ({"prompt": "Q", "chosen": "a", "rejected": 5}, r":2: `rejected` 5: .*valid string"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_finished": "no"}, r":2: `chosen_finished`"),
    ],
)
def test_bad_pairs_are_errors_that_name_the_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path, [{"prompt": "Q", "chosen": "a", "rejected": "b"}, row])
    with pytest.raises(UserError, match=message):
        read_pairs(path)


def test_chat_wraps_the_prompts_of_pairs_that_are_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q?\n", "chosen": "a", "rejected": "b"},
        {"chosen": "Why? a", "rejected": "Why? b"},
        {"prompt": [user("Hi"), assistant("Hi"), user("Q?")], "chosen": "a", "rejected": "b"},
    ]
    path = write(tmp_path, rows)
    plain, wrapped = read_pairs(path), read_pairs(path, chat=True)
    assert [pair.prompt for pair in plain] == ["Q?\n", "Why?", rows[2]["prompt"]]
    assert [pair.prompt for pair in wrapped] == [[user("Q?")], [user("Why?")], rows[2]["prompt"]]


def test_a_recipes_chat_and_slice_hold_for_its_pairs(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b"} for n in range(4)])
    data = {"pairs": path, "skip": 1, "limit": 2}
    sets = {"test": {"task": "planted_flaws"}}
    recipe = Recipe.model_validate(
        {"name": "x", "model": "m", "chat": True, "data": data, "evaluate": {"sets": sets}}
    )
    assert [pair.prompt for pair in training_pairs(recipe)] == [[user("Q1")], [user("Q2")]]
