"""A run's folder: atomic writes, hashes, lines that survive a kill."""

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

from allo.errors import UserError
from allo.json_text import parse_json

Record = TypeVar("Record")

_HASH_BLOCK = 1 << 20


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Finish the write in progress: Ctrl-C is held back until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if pending:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """The path of a file to write, which takes the name `path` once the block ends well.

    So `path` holds the old content or the new, never a part. The file gets the mode that the umask
    gives, whatever its writer chose.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with uninterrupted():
            give_default_mode(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_written_aside(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, `<path>.part`, which takes its name once the block ends well, and else is removed.

    UserError where `path` already holds something.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{path} already exists: give another name or remove it")
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def give_default_mode(file: Path) -> None:
    """The mode that the umask gives to a new file; safetensors writes files for their owner alone."""
    umask = os.umask(0o022)  # it can only be read by setting it
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write aside, flush to disk, rename."""
    with written_aside(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return parse_json(path.read_bytes(), place=str(path), advice="Remove the file to start again.")


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """One JSON object a line; dataclass records are written field by field."""
    write_atomic(path, "".join(_line(record) for record in records))


def read_jsonl(path: Path, record: type[Record]) -> list[Record]:
    """Read records that `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        return [record(**json.loads(line)) for line in file]


def _line(record: Any) -> str:
    return json.dumps(_fields(record), ensure_ascii=False) + "\n"


def _fields(record: Any) -> Any:
    """A record as a mapping; mappings pass."""
    is_record = dataclasses.is_dataclass(record) and not isinstance(record, type)
    return dataclasses.asdict(record) if is_record else record


class ResumableLines:
    """Batches of lines in `<path><suffix>`: a killed stage goes on after its last whole batch.

    Each line is one batch (a JSON array of objects). A torn last line is dropped on opening.
    """

    def __init__(self, path: Path, *, suffix: str = ".waves.part") -> None:
        self.path = path
        self._part = path.with_name(path.name + suffix)
        self.batches: list[list[dict[str, Any]]] = []
        if self._part.exists():
            whole = 0
            with self._part.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self.batches.append(json.loads(line))
                    whole += len(line)
            os.truncate(self._part, whole)

    def append(self, batch: list[Any]) -> None:
        rows = [_fields(row) for row in batch]
        with uninterrupted(), self._part.open("ab") as file:
            file.write(json.dumps(rows, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.batches.append(rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            yield from batch

    def discard(self) -> None:
        """Remove the part file, once the finished file stands."""
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
    """Hash of a JSON value, whatever the order of its keys."""
    return sha256_text(json.dumps(value, sort_keys=True, ensure_ascii=False))


def sha256_answers(answers: Iterable[tuple[str | None, str]]) -> str:
    """Hash of answers, each its prompt's id and its text, whatever their order."""
    return sha256_json(sorted([id or "", text] for id, text in answers))


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where each stage's files are."""

    path: Path

    @property
    def start(self) -> Path:
        return self.path / "00-sft"

    @property
    def completions(self) -> Path:
        return self.path / "01-completions.jsonl"

    @property
    def verdicts(self) -> Path:
        return self.path / "02-verdicts.jsonl"

    @property
    def pairs(self) -> Path:
        return self.path / "03-pairs.jsonl"

    @property
    def wrong(self) -> Path:
        return self.path / "03-wrong.jsonl"

    @property
    def importance(self) -> Path:
        return self.path / "04-importance.safetensors"

    @property
    def warmup(self) -> Path:
        return self.path / "04-warmup"

    @property
    def contrast(self) -> Path:
        return self.path / "05-contrast"

    @property
    def token_scores(self) -> Path:
        return self.path / "05-token-scores.parquet"

    @property
    def forget(self) -> Path:
        return self.path / "06-forget"

    @property
    def improve(self) -> Path:
        return self.path / "07-improve"

    @property
    def evaluation(self) -> Path:
        return self.path / "08-eval.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, held by this process alone.

    Raises `UserError` where another process has it, and `OSError` where it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another allo process works in this folder. Wait for it.") from error
        yield


class FileHashes:
    """SHA-256 of files, remembered by size and modification time so that big weights are read once."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: dict[str, list[Any]] = json.loads(cache.read_text()) if cache.exists() else {}

    def of(self, path: Path) -> str:
        """Hash of a file, or of all files below a folder by their relative names."""
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")
            )
            return sha256_json({str(file.relative_to(path)): self.of(file) for file in files})
        stat = path.stat()
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(key)
        if entry is None or entry[:2] != stamp:
            self._known[key] = [*stamp, sha256_file(path)]
            write_json(self._cache, self._known)
        return str(self._known[key][2])


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
