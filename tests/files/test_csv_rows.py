"""Rows of CSV files: cells are text, and a table that was cut or saved in another way is refused by its line."""

import codecs
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files import row_files
from allo.files.rows import read_rows
from allo.tasks.pairs import pairs_and_reading, read_pairs


def found(folder: Path, content: str | bytes) -> list[tuple[int, dict[str, Any]]]:
    path = folder / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(number, row) for number, _, row in read_rows(path)]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("prompt,answer\nQ,5\n", [(2, {"prompt": "Q", "answer": "5"})]),
        ("prompt,answer\r\nQ,5", [(2, {"prompt": "Q", "answer": "5"})]),
        ("\n\nprompt,answer\n\nQ,true\n\n", [(5, {"prompt": "Q", "answer": "true"})]),
        ("prompt,answer\nQ,\n,5\n", [(2, {"prompt": "Q"}), (3, {"answer": "5"})]),
        ('prompt,answer\nQ,""\n', [(2, {"prompt": "Q"})]),
        ("prompt,answer\n Q , null\n", [(2, {"prompt": " Q ", "answer": " null"})]),
        (
            'prompt,answer\n"Q,\n\n""q""","a"\nR,b\n',
            [(2, {"prompt": 'Q,\n\n"q"', "answer": "a"}), (5, {"prompt": "R", "answer": "b"})],
        ),
        (' prompt ,"answer"\nQ,5" disk\n', [(2, {"prompt": "Q", "answer": '5" disk'})]),
        ("prompt\nQ; R\n", [(2, {"prompt": "Q; R"})]),
        (",prompt\n0,Q\n", [(2, {"unnamed column 1": "0", "prompt": "Q"})]),
        ("prompt,\nQ,\n", [(2, {"prompt": "Q"})]),
        ("prompt\n\u2028Q\u0085\n", [(2, {"prompt": "\u2028Q\u0085"})]),
        (codecs.BOM_UTF8 + b"prompt\nQ\n", [(2, {"prompt": "Q"})]),
    ],
)
def test_cells_are_text_and_an_empty_one_is_absent(
    tmp_path: Path, content: str | bytes, rows: list[tuple[int, dict[str, Any]]]
) -> None:
    assert found(tmp_path, content) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,answer\nQ\n", ":2: 1 cells, and the header has 2 columns"),
        ('prompt,answer\n"Q\n",5\nQ,a,b\n', ":4: 3 cells, and the header has 2 columns"),
        ("prompt,answer,prompt\nQ,5,R\n", ":1: the column 'prompt' is there twice"),
        ("prompt, prompt\nQ,5\n", ":1: the column 'prompt' is there twice"),
        ("prompt;answer\nQ;5\n", ":1: columns are separated by ';'; save the file with commas"),
        ("prompt\tanswer\nQ\t5\n", r":1: columns are separated by '\\t'"),
        ('prompt,answer\nQ,"5\nR,6\n', r":2: not CSV \(unexpected end of data\)"),
        ('prompt,answer\nQ,5\n"R" r,6\n', ":3: not CSV "),
        ("prompt,answer\nQ,5\n\ufeff,\0\n", ":3: UTF-16 text, or a damaged file"),
        ("prompt,answer\nQ,5\n".encode("utf-16"), ":1: UTF-16 text"),
        ("prompt,answer\nQ,5\nä,6\n".encode("latin-1"), r":3: no UTF-8 text \(.* at byte 0\)"),
        (b"\x1f\x8b\x08", ":1: gzip data"),
        ("", "the file is empty"),
        ("prompt,answer\n", "the file is empty; it needs at least one row"),
        ("prompt,answer\n" + 3000 * "x" + ",5\n", ":2: .*without a line break"),
        ('prompt,answer\n"' + 90 * (90 * "x" + "\n"), ":2: not CSV .field larger than field limit"),
    ],
)
def test_another_table_is_refused_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, message: str
) -> None:
    monkeypatch.setattr(row_files, "LONGEST_LINE", 2000)
    with pytest.raises(UserError, match=rf"mine\.csv{message}|mine\.csv: {message}"):
        found(tmp_path, content)


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    text = 200_000 * "x"
    assert found(tmp_path, f"prompt\n{text}\n") == [(2, {"prompt": text})]


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "user", "content": "Name a tree."}],
        [{"from": "human", "value": "Name a tree."}],
        [{"content": "Name a tree.", "role": "user"}],
    ],
)
def test_messages_in_a_cell_are_not_trained_on_as_text(tmp_path: Path, chat: list[dict[str, str]]) -> None:
    cell = str(chat).replace('"', '""')
    with pytest.raises(UserError, match=r"mine\.csv:2: `prompt` holds messages written as text"):
        found(tmp_path, f'prompt,chosen,rejected\n"{cell}",a,b\n')


def test_a_row_of_a_table_is_named_by_the_line_it_begins_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('prompt,chosen,rejected,note\n"Q\n?",a,b,x\nR,a,,x\n')
    with pytest.raises(UserError, match=r"mine\.csv:4: lacks `rejected`; found `chosen`, `note`, `prompt`"):
        read_pairs(path)
    path.write_text('prompt,chosen,rejected,note\n"Q\n?",a,b,x\nR,a,a,\n')
    pairs, reading = pairs_and_reading(path)
    assert [(pair.prompt_id, pair.prompt) for pair in pairs] == [("mine-2", "Q\n?")]
    assert reading.ignored == ("note",) and sum(reading.dropped.values()) == 1
