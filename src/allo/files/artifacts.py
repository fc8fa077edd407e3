"""A run's folder: atomic writes, hashes, lines that survive a kill, JSON that reveals damage."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from allo.console import say
from allo.errors import UserError
from allo.files.json_forms import SEAL, START_AGAIN, checked, dump_json, sealed, unsealed
from allo.files.json_text import parse_json

Record = TypeVar("Record")

_HASH_BLOCK = 1 << 20
_LINE_DIGITS = 16  # of the digest that begins each line of `ResumableLines`


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block ends, so that a write in progress is finished."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: pending.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary file's path; rename the file to `path` if the block succeeds.

    So `path` holds the old content or the new, never a part. The file gets the mode that the umask gives.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with uninterrupted():
            give_default_mode(part)
            sync(part)
            os.replace(part, path)
            sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_written_aside(path: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Yield a new folder `<path>.part`; rename it to `path` if the block succeeds, otherwise remove it.

    Raises `UserError` if `path` already holds something, unless it `replaces` that.
    """
    if not replaces and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise UserError(f"{path} already exists: give another name or remove it")
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        sync_all(part)
        if replaces:
            remove(path)
        os.replace(part, path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Wait until a folder and everything below it are on disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def give_default_mode(file: Path) -> None:
    """Give a file the mode that the umask gives; safetensors makes its files readable by their owner only."""
    umask = os.umask(0o022)  # the umask can be read only by setting it
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write to a temporary file, flush it to disk and rename it."""
    with written_aside(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON. Raises `DivergedError` for NaN and infinite numbers, which JSON cannot hold."""
    write_atomic(path, dump_json(value, path, indent=1) + "\n")


def read_json(path: Path, *, advice: str = START_AGAIN) -> Any:
    return parse_json(path.read_bytes(), place=str(path), advice=advice)


def read_as(path: Path, form: type[Record], *, advice: str = START_AGAIN) -> Record:
    """Read a JSON file into a dataclass or model. Raises `UserError` naming the file, the key and what was found."""
    return checked(read_json(path, advice=advice), form, place=str(path), advice=advice)


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Write one JSON object per line; dataclass records are written field by field."""
    write_atomic(path, "".join(dump_json(_fields(record), path) + "\n" for record in records))


def read_jsonl(path: Path, record: type[Record]) -> list[Record]:
    """Read records that `write_jsonl` wrote. Raises `UserError` naming the first line that does not fit."""
    with path.open("rb") as file:
        return [_record(line, record, place=f"{path}:{number}") for number, line in enumerate(file, start=1)]


def _record(line: bytes, record: type[Record], *, place: str) -> Record:
    advice = "Run the stage that writes it again."
    row = parse_json(line, place=place, advice=advice)
    checked(row, record, place=place, advice=advice)
    try:
        return record(**row)
    except TypeError as error:
        raise UserError(f"{place}: {error}. {advice}") from error


def _fields(record: Any) -> Any:
    """Return a record as a mapping; mappings are returned unchanged."""
    is_record = dataclasses.is_dataclass(record) and not isinstance(record, type)
    return dataclasses.asdict(record) if is_record else record


class ResumableLines:
    """Batches of lines in `<path><suffix>`, so that a killed stage resumes after its last whole batch.

    Each line is a digest and one batch, a JSON array of objects. On opening, a torn last line is dropped. From the
    first damaged line on, all lines are dropped with a message, since a batch's place says what it belongs to.

    With `in_order=False` batches identify themselves, so only damaged lines are dropped. Lines without a digest,
    which earlier versions wrote, are kept.
    """

    def __init__(self, path: Path, *, suffix: str = ".waves.part", in_order: bool = True) -> None:
        self.path = path
        self._part = path.with_name(path.name + suffix)
        self._in_order = in_order
        self.batches: list[list[dict[str, Any]]] = []
        if self._part.exists():
            self._open()

    def _open(self) -> None:
        lines = self._part.read_bytes().split(b"\n")
        torn = lines.pop()
        kept: list[bytes] = []
        dropped: list[int] = []
        for number, line in enumerate(lines, start=1):
            batch = None if dropped and self._in_order else self._read(line)
            if batch is None:
                dropped.append(number)
            else:
                kept.append(line)
                self.batches.append(batch)
        if dropped:
            what = "is damaged, or of an earlier version"
            so = (
                "it and all after it are made again"
                if self._in_order
                else f"dropped {len(dropped)} such lines"
            )
            say(f"{self._part}:{dropped[0]}: {what}: {so}")
        if dropped and dropped[0] <= len(kept):  # other lines follow it
            write_atomic(self._part, b"".join(line + b"\n" for line in kept))
        elif dropped or torn:
            os.truncate(self._part, sum(len(line) + 1 for line in kept))

    def _read(self, line: bytes) -> list[dict[str, Any]] | None:
        """Return the batch of a whole line; None if the line is damaged or belongs elsewhere."""
        digest, _, body = line.partition(b" ")
        if digest != self._digest(body, len(self.batches)):
            if self._in_order or not line.startswith(b"["):
                return None
            body = line
        try:
            return checked(parse_json(body, place=""), list[dict[str, Any]], place="")
        except UserError:
            return None

    def _digest(self, body: bytes, place: int) -> bytes:
        """Return the digest that begins a line; with `in_order` it also covers the line's place."""
        salt = b"%d " % place if self._in_order else b""
        return hashlib.sha256(salt + body).hexdigest()[:_LINE_DIGITS].encode()

    def append(self, batch: list[Any]) -> None:
        rows = [_fields(row) for row in batch]
        body = dump_json(rows, self._part).encode()
        with uninterrupted(), self._part.open("ab") as file:
            file.write(self._digest(body, len(self.batches)) + b" " + body + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.batches.append(rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            yield from batch

    def discard(self) -> None:
        """Remove the part file once the finished file exists."""
        self._part.unlink(missing_ok=True)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hash of a JSON value, independent of key order."""
    return sha256_text(json.dumps(value, sort_keys=True, ensure_ascii=False))


def sha256_answers(answers: Iterable[tuple[str | None, str]]) -> str:
    """Return the hash of answers, each a prompt's id and a text, independent of their order."""
    return sha256_json(sorted([id or "", text] for id, text in answers))


class _Below:
    """A path below a run's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "RunFolder", owner: type) -> Path:
        return run.path / self._name


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The paths of each stage's files."""

    path: Path
    start = _Below("00-sft")
    completions = _Below("01-completions.jsonl")
    verdicts = _Below("02-verdicts.jsonl")
    pairs = _Below("03-pairs.jsonl")
    feedback = _Below("03-feedback.jsonl")
    wrong = _Below("03-wrong.jsonl")
    held_out = _Below("03-held-out.jsonl")
    importance = _Below("04-importance.safetensors")
    warmup = _Below("04-warmup")
    contrast = _Below("05-contrast")
    token_scores = _Below("05-token-scores.parquet")
    forget = _Below("06-forget")
    improve = _Below("07-improve")
    evaluation = _Below("08-eval.json")
    model = _Below("model")
    card = _Below("model-card.md")
    align = _Below("align.yaml")
    manifest = _Below("manifest.json")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder if it is missing, and hold it for this process alone.

    Raises `UserError` if another process holds it, and `OSError` if it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another allo process works in this folder. Wait for it.") from error
        yield


class FileHashes:
    """SHA-256 of files, cached by size, times and inode so that large weights are read once.

    A lost or damaged cache only means that files are read again. With `reads_only` the cache is not written.
    """

    def __init__(self, cache: Path, *, reads_only: bool = False) -> None:
        self._cache, self._reads_only = cache, reads_only
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(UserError, OSError):
            found = checked(read_json(cache), dict[str, Any], place="")
            if SEAL in found:
                self._known = checked(unsealed(found, place=""), dict[str, list[Any]], place="")

    def of(self, path: Path) -> str:
        """Return the hash of a file, or of all files below a folder with their relative names."""
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")
            )
            return sha256_json({str(file.relative_to(path)): self.of(file) for file in files})
        stat = path.stat()
        key = str(path.resolve())
        # Nobody can set the change time, so it reveals a file that was altered and had its old mtime restored.
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = self._known.get(key)
        if entry is None or entry[:-1] != stamp:
            self._known[key] = [*stamp, sha256_file(path)]
            if not self._reads_only:
                with contextlib.suppress(OSError):  # without the cache, files are read again
                    write_json(self._cache, sealed(self._known))
        return str(self._known[key][-1])


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
