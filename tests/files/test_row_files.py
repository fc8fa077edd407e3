"""The kinds of files and folders that rows are read from: the same rows in each, or refused with file and line."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from allo.errors import UserError
from allo.files.row_files import FILE_TYPES
from allo.files.rows import read_rows
from allo.tasks.pairs import pairs_and_reading, read_pairs
from allo.tasks.prompts import PromptSource, prompts_and_reading, read_prompts

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a tree,\nplease.", "chosen": 'An "oak".', "rejected": "Rock; or so.", "answer": "oak"},
    {"prompt": "Nenne ein Tier: ä?", "chosen": "Fuchs, natürlich.", "rejected": "None"},
]


def filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, filled(rows)[0])
        table.writeheader()
        table.writerows(filled(rows))


def write_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(filled(rows))
    with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=1)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    ".jsonl": lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
    ".jsonl.gz": lambda path, rows: path.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    ),
    ".json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    ".csv": write_csv,
    ".parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(filled(rows)), path),
    ".arrow": write_stream,
}


def save(path: Path, rows: list[dict[str, Any]], **splits: list[dict[str, Any]]) -> Path:
    data: Any = datasets.Dataset.from_list(filled(rows))
    if splits:
        others = {name: datasets.Dataset.from_list(filled(each)) for name, each in splits.items()}
        data = datasets.DatasetDict({"train": data, **others})
    data.save_to_disk(str(path))
    return path


def test_every_type_has_a_case_here() -> None:
    assert set(WRITERS) == set(FILE_TYPES)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_rows_are_read_from_every_type_of_file(tmp_path: Path, kind: str) -> None:
    for name in (f"mine{kind}", f"mine{kind.upper()}"):
        WRITERS[kind](tmp_path / name, ROWS)
        found = list(read_rows(tmp_path / name))
        assert [row for _, _, row in found] == ROWS
        assert all(place.startswith(str(tmp_path / name)) for _, place, _ in found)
    path = tmp_path / f"mine{kind}"
    pairs = read_pairs(path)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in ROWS
    ]
    assert pairs[0].prompt_id.startswith("mine-")
    assert [prompt.answer for prompt in read_prompts(PromptSource(file=path))] == ["oak", None]


def test_an_arrow_file_is_read_like_a_stream(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(filled(ROWS))
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert [row for _, _, row in read_rows(tmp_path / "a.arrow")] == ROWS


def test_a_saved_data_set_is_read_and_its_shards_too(tmp_path: Path) -> None:
    folder = save(tmp_path / "my.data", ROWS)
    found = list(read_rows(folder))
    assert [row for _, _, row in found] == ROWS
    assert [place for _, place, _ in found] == [f"{folder}, row 0", f"{folder}, row 1"]
    assert read_pairs(folder)[0].prompt_id == "my.data-0"
    (shard,) = folder.glob("*.arrow")
    assert [row for _, _, row in read_rows(shard)] == ROWS


def test_a_saved_format_hides_no_column(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(filled(ROWS)).with_format("numpy", columns=["prompt"])
    data.save_to_disk(str(tmp_path / "one"))
    assert [row for _, _, row in read_rows(tmp_path / "one")] == ROWS


def test_of_several_splits_the_named_one_is_read_and_said(tmp_path: Path) -> None:
    folder = save(tmp_path / "both", ROWS[:1], test=ROWS[1:])
    for split, row in zip(("train", "test"), ROWS, strict=True):
        ((_, place, found),) = read_rows(folder, split=split)
        assert (place, found) == (f"{folder}[{split}], row 0", row)
        pairs, reading = pairs_and_reading(folder, split=split)
        assert pairs[0].chosen == row["chosen"]
        assert reading.sentences[0] == f"the split {split!r} is read, of train, test"
    _, reading = prompts_and_reading(PromptSource(file=folder, split="test"))
    assert reading.sentences[0] == "the split 'test' is read, of train, test"
    assert not pairs_and_reading(save(tmp_path / "one", ROWS))[1].origin


@pytest.mark.parametrize("split", ["valid", "../both/train", ""])
def test_a_split_that_is_not_there_is_refused_naming_the_others(tmp_path: Path, split: str) -> None:
    folder = save(tmp_path / "both", ROWS, dev=ROWS)
    with pytest.raises(UserError, match=f"has no split {split!r}; it has train, dev"):
        pairs_and_reading(folder, split=split)


def test_a_file_and_a_single_data_set_have_no_splits(tmp_path: Path) -> None:
    WRITERS[".jsonl"](tmp_path / "a.jsonl", ROWS)
    for path in (tmp_path / "a.jsonl", save(tmp_path / "one", ROWS)):
        with pytest.raises(UserError, match="no splits, and `split` is 'test'; remove `split`"):
            pairs_and_reading(path, split="test")
        with pytest.raises(UserError, match="only a data set of the hub has a `config`"):
            pairs_and_reading(path, config="main")


def test_other_folders_are_refused_naming_a_file_in_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`save_to_disk` did not write\. Name a file of rows"):
        read_pairs(tmp_path)
    WRITERS[".csv"](tmp_path / "mine.csv", ROWS)
    with pytest.raises(UserError, match=r"Name a file in it, such as .*mine\.csv"):
        read_pairs(tmp_path)


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", ROWS)
    next(folder.glob("*.arrow")).write_bytes(b"no")
    with pytest.raises(UserError, match="one: not readable as a saved data set"):
        read_pairs(folder)
    both = save(tmp_path / "both", ROWS, test=ROWS)
    (both / "dataset_dict.json").write_text('{"splits": "train"}')
    with pytest.raises(UserError, match=r"dataset_dict\.json: lists no splits"):
        read_pairs(both)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.arrow", b"", "not readable as Arrow"),
        ("a.arrow", b"ARROW1\0\0 and no more", "not readable as Arrow"),
        ("a.arrow", b"no arrow at all", "not readable as Arrow"),
        ("a.json", b"", "a.json: not JSON"),
        ("a.json", b"[]", "the file is empty"),
        ("a.json", b'{"prompt": "a"}', "not a JSON array of objects, but a dict. Write one array"),
        ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', r"not JSON .*one object a line and name the file \.jsonl"),
        ("a.json", b'[{"prompt": "a"}, 5]', "a.json, row 2: a JSON int, not an object"),
        ("a.json", b'[{"prompt": "a", "prompt": "b"}]', "the key 'prompt' is there twice"),
        ("a.json", b'[{"prompt": "\xff"}]', "a.json: no UTF-8 text"),
        ("a.tsv", b"prompt\na\n", r"unknown file type; .*\.jsonl, \.jsonl\.gz, \.json, \.csv"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_of_its_type_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(PromptSource(file=tmp_path / name))


@pytest.mark.parametrize("write", [pyarrow.parquet.write_table, None])
def test_json_that_arrow_holds_as_text_is_refused(tmp_path: Path, write: Any) -> None:
    """Its values would be trained on with their quotes."""
    column = pyarrow.array(['"a"'], pyarrow.string())
    table = pyarrow.table({"prompt": pyarrow.ExtensionArray.from_storage(pyarrow.json_(), column)})
    path = tmp_path / ("a.parquet" if write else "a.arrow")
    if write:
        write(table, path)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(UserError, match="the column 'prompt' holds JSON as text"):
        list(read_rows(path))
