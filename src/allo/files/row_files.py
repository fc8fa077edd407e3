"""Readers of the kinds of files that rows come in."""

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from allo.errors import UserError
from allo.files.json_text import parse_json

LONGEST_LINE = 1 << 26
"""Most bytes of one line, unpacked: a row is text for a model to read."""
OTHER_SIGNS = ";\t|"
"""Signs that separate columns in other tables than CSV."""
# The beginning of a list of messages that `str` or `json.dumps` has written as text.
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*(['"])(?:role|content|from|value)\1\s*:""")

Numbered = Iterator[tuple[int, dict[str, Any]]]
OnBad = Callable[[UserError], None]
"""Takes the error of a row that cannot be read, or raises it."""


def without_nulls(value: Any) -> Any:
    """Drop null keys at any depth: Arrow gives every object the keys of all others."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def json_lines(path: Path, on_bad: OnBad) -> Numbered:
    """Yield a file's objects; `on_bad` takes the error of a line that is none."""
    advice = "Write one JSON object a line."
    for number, line in _lines(path):
        if line := line.strip():
            place = f"{path}:{number}"
            try:
                row = parse_json(line, place=place, advice=advice)
                if not isinstance(row, dict):
                    raise UserError(f"{place}: a JSON {type(row).__name__}; write one JSON object a line.")
            except UserError as error:
                on_bad(error)
                continue
            yield number, row


def json_array(
    path: Path,
    on_bad: OnBad,
    *,
    advice: str = "Write a JSON array of objects, or one object a line and name the file .jsonl.",
) -> Numbered:
    try:
        rows = parse_json(path.read_bytes(), place=str(path), advice=advice)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: not an array of objects, but a {type(rows).__name__}. {advice}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            on_bad(UserError(f"{path}, row {number}: a JSON {type(row).__name__}, not an object. {advice}"))
            continue
        yield number, row


def csv_rows(path: Path, on_bad: OnBad) -> Numbered:
    """Yield the rows of a CSV file, each with the line that it begins on. All values are text; an empty cell is absent.

    `on_bad` takes the error of a row with more or fewer cells than the header.
    """
    csv.field_size_limit(LONGEST_LINE)
    rows = csv.reader(_texts(path), strict=True)
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
        place = f"{path}:{number}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UserError(
                f"{place}: not CSV ({error}). Separate cells by commas; put a cell with a comma, a quote or a line break "
                "into double quotes, and double its quotes."
            ) from error
        if cells is None:
            return
        if not cells:
            continue  # a blank line
        if header is None:
            header = _header(cells, place=place)
            continue
        if len(cells) != len(header):
            on_bad(
                UserError(
                    f"{place}: {len(cells)} cells, and the header has {len(header)} columns; put a cell with a comma or a "
                    "line break into double quotes."
                )
            )
            continue
        row = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        if name := next((name for name, cell in row.items() if _MESSAGES.match(cell)), None):
            raise UserError(
                f"{place}: `{name}` holds messages written as text, and a cell of CSV is read as text. Save the rows as "
                "JSON Lines or Parquet."
            )
        yield number, row


def parquet_rows(path: Path, _: OnBad) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        yield from _of_batches(path, table.schema_arrow, table.iter_batches())
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet ({error}).") from error


def arrow_rows(path: Path, _: OnBad) -> Numbered:
    """Yield the rows of an Arrow file or stream; `datasets` writes streams."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
                yield from _of_batches(path, file.schema, batches)
            else:
                stream = pyarrow.ipc.open_stream(source)
                yield from _of_batches(path, stream.schema, stream)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as Arrow ({error}).") from error


FILE_TYPES: dict[str, tuple[Callable[[Path, OnBad], Numbered], str]] = {
    ".jsonl": (json_lines, ":"),
    ".jsonl.gz": (json_lines, ":"),
    ".json": (json_array, ", row "),
    ".csv": (csv_rows, ":"),
    ".parquet": (parquet_rows, ":"),
    ".arrow": (arrow_rows, ":"),
}
"""The end of each type's names, its reader, and what stands between the file and a row's number in errors."""


def splits_of(folder: Path) -> list[str] | None:
    """Return the splits of a `DatasetDict` that was saved to a folder; None for one data set.

    Raises `UserError` for any other folder.
    """
    listed = folder / "dataset_dict.json"
    if listed.is_file():
        found = parse_json(listed.read_bytes(), place=str(listed))
        splits = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(splits, list) or not all(isinstance(each, str) for each in splits):
            raise UserError(f"{listed}: lists no splits; save the data set again.")
        return splits
    if (folder / "state.json").is_file():
        return None
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(tuple(FILE_TYPES)))
    raise UserError(
        f"{folder}: a folder that datasets' `save_to_disk` did not write. Name "
        + (f"a file in it, such as {folder / files[0]}." if files else "a file of rows.")
    )


def saved_rows(folder: Path, split: str) -> Numbered:
    """Yield the rows, counted from 0, of a data set that was saved to a folder, or of one split of several."""
    splits = splits_of(folder)
    if splits is None and split != "train":
        raise UserError(f"{folder}: has no splits, and `split` is {split!r}; remove `split`.")
    if splits is not None and split not in splits:
        raise UserError(
            f"{folder}: has no split {split!r}; it has {', '.join(splits) or 'none'}. Name one as `split`."
        )
    place = folder if splits is None else folder / split
    try:
        rows = quiet_datasets().load_from_disk(str(place))
        for number, row in enumerate(rows.with_format(None)):  # a saved format may hide columns
            yield number, without_nulls(dict(row))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{place}: not readable as a saved data set ({error}); save it again with `save_to_disk`."
        ) from error


def quiet_datasets() -> Any:
    """Return the `datasets` module, which then shows no bars of its own."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield a file's lines without byte-order marks, each of a bounded length."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as lines:
            while line := lines.readline(LONGEST_LINE + 1):
                number += 1
                yield number, _bare_line(line, place=f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: damaged gzip data after line {number} ({error}); copy or download the file again."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error


def _bare_line(line: bytes, *, place: str) -> bytes:
    if len(line) > LONGEST_LINE:
        raise UserError(
            f"{place}: more than {LONGEST_LINE >> 20} MiB without a line break; write one row a line."
        )
    if line.startswith(b"\x1f\x8b"):
        raise UserError(f"{place}: gzip data; let the file's name end with .jsonl.gz, or unpack it.")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        raise UserError(f"{place}: UTF-16 text, or a damaged file; save it as UTF-8.")
    return line.removeprefix(codecs.BOM_UTF8)


def _texts(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{number}: no UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8."
            ) from error


def _header(cells: list[str], *, place: str) -> list[str]:
    """Return the names of the columns. The index that pandas writes has none, and is named by its place."""
    names = [cell.strip() or f"unnamed column {number}" for number, cell in enumerate(cells, start=1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{place}: the column {twice!r} is there twice; rename one of them.")
    if len(names) == 1 and (sign := next((sign for sign in OTHER_SIGNS if sign in names[0]), None)):
        raise UserError(f"{place}: columns are separated by {sign!r}; save the file with commas.")
    return names


def _of_batches(path: Path, schema: Any, batches: Iterable[Any]) -> Numbered:
    names = schema.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: the column {twice[0]!r} is there twice; rename one of them.")
    if coded := [field.name for field in schema if "arrow.json" in str(field.type)]:
        raise UserError(f"{path}: the column {coded[0]!r} holds JSON as text; save the rows as JSON Lines.")
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            # Every row has every column, so a null column is an absent one.
            yield number, without_nulls(row)
