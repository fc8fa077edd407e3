"""Files of a run: whole or absent, resumable, hashed by content."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from allo.errors import UserError
from allo.files import artifacts
from allo.files.artifacts import (
    FileHashes,
    ResumableLines,
    read_json,
    read_jsonl,
    remove,
    sha256_file,
    sha256_json,
    uninterrupted,
    write_atomic,
    write_json,
    write_jsonl,
    written_aside,
)
from allo.files.records import Completion


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(program: str) -> None:
    """Run a program that kills itself with SIGKILL."""
    header = "import os, signal; from pathlib import Path; from allo.files import artifacts\n"
    header += "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", header + program])
    assert done.returncode == -signal.SIGKILL


def test_a_kill_between_write_and_rename_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    killed(f"artifacts.os.replace = die; artifacts.write_atomic(Path({str(path)!r}), 'new')")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt", "file.txt.part"]  # what the kill left is in no one's way
    write_atomic(path, "newer")
    assert path.read_text() == "newer" and names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_content_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, broken, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_of_the_umask_whoever_wrote_them(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "text", "a")
        with written_aside(tmp_path / "tensors") as part:
            save_file({"a": torch.zeros(1)}, part)  # 0600 by itself
        assert os.umask(umask) == umask  # and the umask stands
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Restore Python's own handler, since SIGINT is ignored if pytest runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_write_in_progress() -> None:
    written = []

    def write() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            written.append(True)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_records_round_trip_line_by_line(tmp_path: Path) -> None:
    records = [Completion("p\u2028q", 0, "line\nnext é", True, 3), Completion("p", 1, "", False, 0)]
    write_jsonl(tmp_path / "a.jsonl", records)
    assert len((tmp_path / "a.jsonl").read_bytes().splitlines()) == 2
    assert read_jsonl(tmp_path / "a.jsonl", Completion) == records


def test_a_damaged_json_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "a": 1,\n')
    with pytest.raises(UserError, match=r"a\.json: not JSON .*line 3.* Remove the file"):
        read_json(tmp_path / "a.json")


def test_lines_resume_after_the_last_whole_batch(tmp_path: Path) -> None:
    lines = ResumableLines(tmp_path / "a.jsonl")
    first, second = [Completion("p", 0, "x", True, 1)], [Completion("p", 1, "y\u2028", True, 1)]
    lines.append(first)
    lines.append(second)
    (part,) = tmp_path.iterdir()
    torn = part.read_bytes()
    for length in range(len(torn) + 1):  # a kill may fall on any byte
        part.write_bytes(torn[:length])
        resumed = ResumableLines(tmp_path / "a.jsonl")
        assert len(resumed.batches) == torn[:length].count(b"\n")
        for batch in [first, second][len(resumed.batches) :]:
            resumed.append(batch)
        assert part.read_bytes() == torn
        assert [Completion(**row) for row in resumed.rows()] == first + second
    resumed.discard()
    assert not names(tmp_path)


def test_a_kill_while_the_result_is_written_keeps_the_batches(tmp_path: Path) -> None:
    """The result and its batches have temporary files with different names."""
    path = tmp_path / "a.jsonl"
    ResumableLines(path).append([{"a": 1}])
    killed(f"artifacts.os.replace = die; artifacts.write_jsonl(Path({str(path)!r}), [{{'a': 1}}])")
    assert ResumableLines(path).batches == [[{"a": 1}]]


def test_hashes_follow_content_and_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "a.bin", tmp_path / ".hashes.json"
    path.write_bytes(b"one")
    read: list[Path] = []
    monkeypatch.setattr(artifacts, "sha256_file", lambda file: (read.append(file), sha256_file(file))[1])
    first = FileHashes(cache).of(path)
    assert FileHashes(cache).of(path) == first and read == [path]
    path.write_bytes(b"two")  # of the same size
    assert FileHashes(cache).of(path) != first and len(read) == 2


def test_a_folders_hash_knows_names_and_content_but_no_hidden_files(tmp_path: Path) -> None:
    folder, hashes = tmp_path / "f", FileHashes(tmp_path / ".hashes.json")
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    first = hashes.of(folder)
    (folder / ".hidden").write_text("x")
    assert hashes.of(folder) == first
    (folder / "sub" / "b").write_text("1")
    with_b = hashes.of(folder)
    (folder / "sub" / "b").rename(folder / "sub" / "c")
    assert len({first, with_b, hashes.of(folder)}) == 3


def test_a_json_hash_is_that_of_the_value() -> None:
    assert sha256_json({"a": 1, "b": [2.0]}) == sha256_json(json.loads('{"b": [2.0], "a": 1}'))
    assert sha256_json({"a": 1}) != sha256_json({"a": 1.5})


def test_remove_takes_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    write_json(tmp_path / "file", 1)
    for name in ("folder", "link", "file", "absent"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["kept"]
