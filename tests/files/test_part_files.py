"""Lines of an interrupted stage: damaged ones are made again, and enter no result."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.errors import DivergedError
from allo.files import artifacts
from allo.files.artifacts import FileHashes, ResumableLines, sha256_file, write_json, write_jsonl

BATCHES = [[{"a": number, "text": "0" * 9}] for number in range(4)]


@pytest.fixture
def part(tmp_path: Path) -> Path:
    lines = ResumableLines(tmp_path / "a.jsonl")
    for batch in BATCHES:
        lines.append(batch)
    (path,) = tmp_path.iterdir()
    return path


def reopened(part: Path, **settings: Any) -> ResumableLines:
    return ResumableLines(part.with_name("a.jsonl"), **settings)


def change_line(part: Path, number: int, to: bytes) -> None:
    lines = part.read_bytes().splitlines(keepends=True)
    lines[number] = to
    part.write_bytes(b"".join(lines))


FOREIGN = {
    "NULs": b"\0" * 40 + b"\n",
    "empty": b"\n",
    "null": b"null\n",
    "empty list": b"[]\n",
    "number": b"7\n",
    "other keys": b'[{"b": 1}]\n',
    "not UTF-8": b"\xff\xfe[]\n",
    "half a line": b'[{"a": 1, "te\n',
    "deep": b"[" * 5000 + b"]" * 5000 + b"\n",
    "of an earlier version": b'[{"a": 2, "text": "000000000"}]\n',
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("number", [0, 2, 3])
def test_all_lines_from_a_foreign_one_on_are_made_again(
    part: Path, line: bytes, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = part.read_bytes()
    change_line(part, number, line)
    lines = reopened(part)
    assert lines.batches == BATCHES[:number]
    assert f"{part.name}:{number + 1}: is damaged" in capsys.readouterr().err.replace("\n", "")
    for batch in BATCHES[number:]:
        lines.append(batch)
    assert part.read_bytes() == whole


def test_no_flipped_bit_enters_the_result(part: Path) -> None:
    """This includes flips that leave valid JSON with another number or letter."""
    whole = part.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            part.write_bytes(damaged)
            found = reopened(part).batches
            assert found == BATCHES[: len(found)]
            assert len(found) == whole[:place].count(b"\n")


def test_lines_in_another_order_or_with_one_missing_are_not_taken(part: Path) -> None:
    """A batch's place says what it belongs to."""
    first, second, *others = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([second, first, *others]))
    assert reopened(part).batches == []
    part.write_bytes(b"".join([first, *others]))
    assert reopened(part).batches == BATCHES[:1]


def test_only_damaged_lines_are_lost_without_an_order(tmp_path: Path) -> None:
    """Batches cost money; those of an earlier version are kept."""
    lines = ResumableLines(tmp_path / "a.jsonl", in_order=False)
    for batch in BATCHES:
        lines.append(batch)
    (part,) = tmp_path.iterdir()
    change_line(part, 1, b"\0" * 30 + b"\n")
    change_line(part, 2, json.dumps(BATCHES[2]).encode() + b"\n")
    kept = [BATCHES[number] for number in (0, 2, 3)]
    assert reopened(part, in_order=False).batches == kept
    again = reopened(part, in_order=False)
    again.append([{"a": 9}])
    assert reopened(part, in_order=False).batches == [*kept, [{"a": 9}]]


def test_a_torn_last_line_is_dropped_silently(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part.write_bytes(part.read_bytes()[:-5])
    assert reopened(part).batches == BATCHES[:-1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_file_is_written_with_nan_or_infinity(tmp_path: Path, number: float) -> None:
    row = {"step": 3, "found": [{"loss": 1.0}, {"loss": number}]}
    path = tmp_path / "a.jsonl"
    for write in (
        lambda: write_json(path, row),
        lambda: write_jsonl(path, [row]),
        lambda: ResumableLines(path).append([row]),
    ):
        with pytest.raises(
            DivergedError, match=r"a\.jsonl.*: not written, `.*found\.1\.loss` is -?(nan|inf)"
        ):
            write()
    assert not path.exists() and not any(each.stat().st_size for each in tmp_path.iterdir())


CACHES = {
    "empty": b"",
    "garbage": b"\x80\x81{",
    "null": b"null",
    "list": b"[]",
    "other values": b'{"/a": null}',
    "deep": b"[" * 5000 + b"]" * 5000,
    "NULs": b"\0" * 100,
}


@pytest.mark.parametrize("content", CACHES.values(), ids=CACHES)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "a.bin", tmp_path / ".hashes.json"
    path.write_bytes(b"one")
    cache.write_bytes(content)
    assert FileHashes(cache).of(path) == sha256_file(path)
    monkeypatch.setattr(artifacts, "sha256_file", lambda file: pytest.fail("read again"))
    assert FileHashes(cache).of(path) == sha256_file(path)


def test_no_flipped_bit_of_the_cache_changes_a_hash(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.bin", tmp_path / ".hashes.json"
    path.write_bytes(b"one")
    expected = FileHashes(cache).of(path)
    whole = cache.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        cache.write_bytes(damaged)
        assert FileHashes(cache).of(path) == expected


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.bin", tmp_path / ".hashes.json"
    path.write_bytes(b"one")
    cache.mkdir()
    assert FileHashes(cache).of(path) == sha256_file(path)


def test_an_altered_file_with_its_old_mtime_is_read_again(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.bin", tmp_path / ".hashes.json"
    path.write_bytes(b"one")
    first, stat = FileHashes(cache).of(path), path.stat()
    path.write_bytes(b"two")
    artifacts.os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert FileHashes(cache).of(path) != first
