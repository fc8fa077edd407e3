"""Rows of the files and hub sets that users bring, each checked with its place named."""

import codecs
import gzip
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from allo.errors import UserError
from allo.files.json_text import parse_json

LONGEST_LINE = 1 << 26
"""Most bytes of one line, unpacked: a row is text for a model to read."""
FILE_TYPES = (".jsonl", ".jsonl.gz", ".parquet")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Matches ids, names, places, languages and dates.
_WORD = re.compile(r"[!->@-~]*|[\d:.,/TZ +-]*")

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")
Row = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """The fate of one source's rows: `dropped` and `mapped` count rows by reason.

    `duplicates` counts rows that ask the same as an earlier one. `ignored` names columns and fields that are not
    read.
    """

    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    mapped: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    ignored: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """Return sentences for the user; none if every row was taken unchanged."""
        said = [f"{_rows(number)} dropped: {reason}" for reason, number in self.dropped.items()]
        said += [f"{_rows(number)}: {what}" for what, number in self.mapped.items()]
        if self.duplicates:
            said.append(f"{_rows(self.duplicates)}: the same as an earlier one")
        if self.ignored:
            said.append(f"ignored columns: {', '.join(map(named, self.ignored))}")
        return said


@dataclass
class Notes:
    """The running counts behind a `Reading`."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    mapped: Counter[str] = field(default_factory=Counter)
    _ignored: dict[str, None] = field(default_factory=dict)

    def ignore(self, names: Iterable[str]) -> None:
        """Note columns that are not read; each is listed once."""
        self._ignored.update(dict.fromkeys(names))

    def counted(self, rows: Iterable[Item]) -> Iterator[Item]:
        """Yield rows that are taken unchanged, and count them."""
        for row in rows:
            self.rows += 1
            yield row

    def reading(self, *, duplicates: int = 0) -> Reading:
        return Reading(self.rows, dict(self.dropped), dict(self.mapped), duplicates, tuple(self._ignored))


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def stem(path: Path) -> str:
    """Return a file's name without its type: `problems` for `problems.jsonl.gz`."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def read_rows(path: Path) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` from a JSON Lines, gzipped JSON Lines or Parquet file.

    `number` counts lines from 1. `place` is `FILE:LINE`, for errors about the row. Raises `UserError` for a missing
    or empty file, an unknown file type, or a line that is not a JSON object.
    """
    if not path.name.endswith(FILE_TYPES):
        raise UserError(f"{path}: unknown file type; rows are read from {', '.join(FILE_TYPES)}.")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    empty = True
    for number, row in _parquet(path) if path.suffix == ".parquet" else _json_lines(path):
        empty = False
        yield number, f"{path}:{number}", row
    if empty:
        raise UserError(f"{path}: the file is empty; it needs at least one row.")


def is_hub_id(source: str | Path) -> bool:
    """Return whether a source is a data set of the hub: `OWNER/NAME`, which is neither here nor named like a file."""
    path = Path(source).expanduser()
    return bool(_HUB_ID.fullmatch(str(source))) and not path.suffix[1:].isalpha() and not path.exists()


def source_rows(
    source: str | Path, *, split: str = "train", config: str | None = None
) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` of a file, or of one split of a data set of the hub."""
    if is_hub_id(source):
        return hub_rows(str(source), split, config=config)
    return read_rows(Path(source).expanduser())


def hub_rows(hub: str, split: str, *, config: str | None = None) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` of one split of a Hugging Face hub data set, counted from 0."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(hub, config, split=split)
    except (OSError, ValueError) as error:  # no such set, config or split; no network
        raise UserError(
            f"{hub}, split {split!r}: could not be loaded from the hub ({error}). "
            "Check the name, the split and the network, or name a local folder or file instead."
        ) from error
    part = split if config is None else f"{config}, {split}"
    for number, row in enumerate(rows):
        yield number, f"{hub}[{part}], row {number}", without_nulls(dict(row))


def hub_file_rows(hub: str, file: str) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` from a JSON Lines file, or from a JSON file with one array of objects.

    This reads sets that `datasets` cannot load by id, because it runs no loading scripts and mixes no types.
    """
    from huggingface_hub import hf_hub_download

    place = f"{hub}/{file}"
    try:
        path = Path(hf_hub_download(hub, file, repo_type="dataset"))
    except (OSError, ValueError) as error:  # no such set or file; no network
        raise UserError(
            f"{place}: could not be loaded from the hub ({error}). "
            "Check the network, or name a local folder instead."
        ) from error
    rows = _json_lines(path) if file.endswith(".jsonl") else _json_array(path, place=place)
    for number, row in rows:
        yield number, f"{place}:{number}", row


def checked(model: type[Model], row: Row, *, place: str) -> Model:
    """Return the row as `model`; raise `UserError` beginning with `place` and naming the first bad column."""
    try:
        return model.model_validate(row)
    except ValidationError as failure:
        errors = failure.errors()
        of_column = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
        # A column may allow several forms: report the error of the form that came closest to matching.
        first = max(of_column, key=lambda error: (error["type"] == "value_error", len(error["loc"])))
        column = str(first["loc"][0]) if first["loc"] else "row"
        if first["type"] == "missing" and len(first["loc"]) == 1:
            columns = ", ".join(map(named, sorted(row))) or "no columns"
            raise UserError(f"{place}: lacks `{column}`; found {columns}.") from failure
        inside = f"{named(str(first['loc'][-1]))} inside: " if len(first["loc"]) > 2 else ""
        reason = inside + first["msg"].removeprefix("Value error, ")
        raise UserError(f"{place}: `{column}` {shown(row.get(column))}: {reason}.") from failure


def without_nulls(value: Any) -> Any:
    """Drop null keys at any depth: Arrow gives every object the keys of all others."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def holds_text(value: Any) -> bool:
    """Return whether a value holds text at any depth; one ASCII word without "?", or a date, is not text."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(map(holds_text, value))
    return isinstance(value, str) and not _WORD.fullmatch(value.strip())


def named(column: str) -> str:
    """Return a column's name for a message, escaped and short."""
    return f"`{column}`" if column.isprintable() and len(column) <= 60 else f"`{shown(column)}`"


def shown(value: object) -> str:
    """Return a value for an error, escaped and short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            while line := lines.readline(LONGEST_LINE + 1):
                number += 1
                line = _bare_line(line, place=f"{path}:{number}")
                if line:
                    yield number, _json_object(line, place=f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: damaged gzip data after line {number} ({error}); copy or download the file again."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error


def _bare_line(line: bytes, *, place: str) -> bytes:
    """Return a line without its line break and its byte-order mark."""
    if len(line) > LONGEST_LINE:
        raise UserError(
            f"{place}: more than {LONGEST_LINE >> 20} MiB without a line break; write one JSON object a line."
        )
    if line.startswith(b"\x1f\x8b"):
        raise UserError(f"{place}: gzip data; let the file's name end with .jsonl.gz, or unpack it.")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        raise UserError(f"{place}: UTF-16 text, or a damaged file; save it as UTF-8.")
    return line.removeprefix(codecs.BOM_UTF8).strip()


def _json_array(path: Path, *, place: str) -> Iterator[tuple[int, Row]]:
    rows = parse_json(path.read_bytes(), place=place, advice="Give the rows as a local folder instead.")
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise UserError(f"{place}: not an array of JSON objects. Give the rows as a local folder instead.")
    return iter(enumerate(rows, start=1))


def _json_object(line: bytes, *, place: str) -> Row:
    row = parse_json(line, place=place, advice="Write one JSON object a line.")
    if not isinstance(row, dict):
        raise UserError(f"{place}: a JSON {type(row).__name__}; write one JSON object a line.")
    return row


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: the column {twice[0]!r} is there twice; rename one of them.")
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                # Parquet gives every row every column, so a null column is an absent one.
                yield number, without_nulls(row)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet ({error}).") from error
