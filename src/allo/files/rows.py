"""Rows of the files and hub sets that users bring, each checked with its place named."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from allo.errors import UserError
from allo.files.row_files import (
    FILE_TYPES,
    json_array,
    json_lines,
    quiet_datasets,
    saved_rows,
    splits_of,
    without_nulls,
)

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Matches ids, names, places, languages and dates.
_WORD = re.compile(r"[!->@-~]*|[\d:.,/TZ +-]*")
_NUMBER = re.compile(r"\d+")

NAMED_ROWS = 5
"""Rows that cannot be used of which an error names each."""
SKIP_BAD = (
    "Mend such rows, or leave them out, counted: `skip_bad: true` beside the data (`allo align`: --skip-bad)."
)
Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")
Row = dict[str, Any]
TRAIN = "train"


@dataclass(frozen=True)
class Reading:
    """The fate of one source's rows: `dropped` and `mapped` count rows by reason.

    `duplicates` counts rows that ask the same as an earlier one. `ignored` names columns and fields that are not
    read. `origin` says which rows of a source were read, if that was not said with the source.
    """

    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    mapped: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    ignored: tuple[str, ...] = ()
    origin: str = ""

    @property
    def sentences(self) -> list[str]:
        """Return sentences for the user; none if every row was taken unchanged."""
        said = [self.origin] if self.origin else []
        said += [f"{_rows(number)} dropped: {reason}" for reason, number in self.dropped.items()]
        said += [f"{_rows(number)}: {what}" for what, number in self.mapped.items()]
        if self.duplicates:
            said.append(f"{_rows(self.duplicates)}: the same as an earlier one, and kept")
        if self.ignored:
            said.append(f"ignored columns: {', '.join(map(named, self.ignored))}")
        return said


@dataclass
class Notes:
    """The running counts behind a `Reading`, and the rows that cannot be used.

    `skip_bad` leaves these out and counts them; None: the rows have no such setting, as those in memory.
    """

    rows: int = 0
    skip_bad: bool | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    mapped: Counter[str] = field(default_factory=Counter)
    origin: str = ""
    _ignored: dict[str, None] = field(default_factory=dict)
    _bad: list[str] = field(default_factory=list)

    def ignore(self, names: Iterable[str]) -> None:
        """Note columns that are not read; each is listed once."""
        self._ignored.update(dict.fromkeys(names))

    def counted(self, rows: Iterable[Item]) -> Iterator[Item]:
        """Yield rows that are taken unchanged, and count them."""
        for row in rows:
            self.rows += 1
            yield row

    def note_bad(self, error: UserError) -> None:
        """Keep the error of a row that cannot be read."""
        self.rows += 1
        self._bad.append(str(error))

    @contextmanager
    def bad_rows(self) -> Iterator[None]:
        """Keep the error of a row, so that all rows with one are named together by `settle`."""
        try:
            yield
        except UserError as error:
            self._bad.append(str(error))

    def settle(self) -> None:
        """Raise `UserError` with all rows that cannot be used, unless they are left out; if none is left, in any case."""
        number = len(self._bad)
        if not number:
            return
        self._bad.sort(key=_by_place)
        if self.skip_bad and number < self.rows:
            self.dropped[f"cannot be used, and `skip_bad` leaves them out; the first: {self._bad[0]}"] += (
                number
            )
            return
        if number == self.rows:  # such as rows of another form
            none = f" None of the {number:,} rows can be used." if number > 1 else ""
            raise UserError(f"{self._bad[0]}{none}")
        how = "" if self.skip_bad is None else f"\n{SKIP_BAD}"
        if number == 1:
            raise UserError(f"{self._bad[0]}{how}")
        listed = "".join(f"\n  {each}" for each in self._bad[:NAMED_ROWS])
        more = f"\n ({number - NAMED_ROWS:,} more)" if number > NAMED_ROWS else ""
        raise UserError(f"{number:,} of {self.rows:,} rows cannot be used:{listed}{more}{how}")

    def reading(self, *, duplicates: int = 0) -> Reading:
        return Reading(
            self.rows, dict(self.dropped), dict(self.mapped), duplicates, tuple(self._ignored), self.origin
        )


def _raise(error: UserError) -> None:
    raise error


def _by_place(error: str) -> str:
    """Return a key that sorts errors, which begin with their places, by file and line."""
    return _NUMBER.sub(lambda number: number[0].zfill(12), error)


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def stem(path: Path) -> str:
    """Return a file's name without its type: `problems` for `problems.jsonl.gz`; a folder's whole name."""
    if path.is_dir():
        return path.resolve().name
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def read_rows(
    path: Path, *, split: str = TRAIN, notes: Notes | None = None
) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` from a file, or from a folder that datasets' `save_to_disk` wrote.

    `number` counts lines from 1, and a folder's rows from 0. `place` is `FILE:LINE`, for errors about the row. A folder
    of several splits is read at `split`. Raises `UserError` for a missing or empty file, an unknown file type, or a row
    that cannot be read, which `notes` keeps if they are given.
    """
    if path.is_dir():
        rows, mark = saved_rows(path, split), (", row " if splits_of(path) is None else f"[{split}], row ")
    else:
        kind = next((kind for kind in FILE_TYPES if path.name.lower().endswith(kind)), None)
        if kind is None and (path.suffix or path.is_file()):
            raise UserError(f"{path}: unknown file type; rows are read from {', '.join(FILE_TYPES)}.")
        if kind is None or not path.is_file():
            raise UserError(f"{path}: there is no such file; check the path.")
        if split != TRAIN:
            raise UserError(f"{path}: a file has no splits, and `split` is {split!r}; remove `split`.")
        read, mark = FILE_TYPES[kind]
        rows = read(path, _raise if notes is None else notes.note_bad)
    empty = True
    for number, row in rows:
        empty = False
        yield number, f"{path}{mark}{number}", row
    if empty and not (notes and notes.rows):
        raise UserError(f"{path}: the file is empty; it needs at least one row.")


def is_hub_id(source: str | Path) -> bool:
    """Return whether a source is a data set of the hub: `OWNER/NAME`, which is neither here nor named like a file."""
    path = Path(source).expanduser()
    return bool(_HUB_ID.fullmatch(str(source))) and not path.suffix[1:].isalpha() and not path.exists()


def source_rows(
    source: str | Path, *, split: str = TRAIN, config: str | None = None, notes: Notes | None = None
) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` of a file, of a saved data set, or of one split of a data set of the hub.

    `notes` takes where the rows come from, if that was not said with the source.
    """
    notes = notes or Notes()
    if is_hub_id(source):
        of_config = f", config {config!r}" if config else ""
        notes.origin = f"read from the hub: the data set {source}{of_config}, split {split!r}"
        return hub_rows(str(source), split, config=config)
    path = Path(source).expanduser()
    if config is not None:
        raise UserError(f"{path}: only a data set of the hub has a `config`; remove it.")
    if path.is_dir() and (splits := splits_of(path)) and splits != [split]:
        notes.origin = f"the split {split!r} is read, of {', '.join(splits)}"
    return read_rows(path, split=split, notes=notes)


def source_name(source: str | Path, *, split: str = TRAIN) -> str:
    """Return the name of a source, with which the ids of its rows begin."""
    return f"{str(source).split('/')[-1]}-{split}" if is_hub_id(source) else stem(Path(source).expanduser())


def hub_rows(hub: str, split: str, *, config: str | None = None) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` of one split of a Hugging Face hub data set, counted from 0."""
    datasets = quiet_datasets()
    try:
        rows = datasets.load_dataset(hub, config, split=split)
    # no such set, config or split; no network; a script; rows of several types
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{hub}, split {split!r}: could not be loaded from the hub ({error}). "
            "Check the name, the split, the config and the network, or name a local folder or file instead."
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
    advice = "Give the rows as a local folder instead."
    rows = json_lines(path, _raise) if file.endswith(".jsonl") else json_array(path, _raise, advice=advice)
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
