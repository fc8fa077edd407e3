"""Damaged files of a run: derived ones are made again, others are reported for the user to decide."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_as, read_jsonl, write_json
from allo.files.json_forms import sealed
from allo.files.manifest import read_manifest, stages_done, write_manifest
from allo.files.records import Verdict
from allo.files.stage import Mark, read_mark
from allo.models.load import load_tokenizer
from allo.models.start import read_start
from allo.pipeline import run_all
from allo.report.read import view
from allo.tokens.rewriter import RECORD, check_rewriter
from tiny_run import LAB, contents, tiny

# Samples and pairs, in some seconds.
SHORT = (
    "judge.max_unanswered=1.0",
    "sft=null",
    "data.limit=4",
    "sample.max_new_tokens=16",
    "sample.num_generations=2",
)
FOREIGN = {
    "null": b"null",
    "list": b"[]",
    "other keys": b'{"a": 1}',
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 9999,
    "NULs": b"\0" * 64,
    "NaN": b'{"hash": NaN}',
}
foreign = pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tiny(tmp_path_factory.mktemp("finished"), *SHORT), until="judge").path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Copy the run, and return its parent folder with the recipe for that place."""
    shutil.copytree(finished, tmp_path / "tiny")
    run_all(tiny(tmp_path, *SHORT), until="judge")
    return tmp_path


def run_again(out: Path) -> dict[str, bytes]:
    return contents(run_all(tiny(out, *SHORT), until="judge").path)


@foreign
def test_a_damaged_manifest_is_reported_and_every_stage_runs_again(
    content: bytes, copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The resolved recipe beside it shows that the folder belongs to this recipe."""
    (copied / "tiny" / "manifest.json").write_bytes(content)
    capsys.readouterr()
    assert run_again(copied) == contents(finished)
    said = capsys.readouterr().err
    assert "manifest.json: " in said and "every stage is done again" in said
    assert [line.split()[0] for line in said.splitlines() if line.endswith("...")] == [
        "sft",
        "sample",
        "judge",
    ]


@pytest.mark.parametrize("other", [True, False])
def test_a_damaged_manifest_of_an_unknown_run_is_left_to_the_user(copied: Path, other: bool) -> None:
    run = copied / "tiny"
    (run / "manifest.json").write_bytes(b"[]")
    if not other:
        (run / "recipe.yaml").unlink()
    before = contents(run)
    with pytest.raises(UserError, match=r"manifest\.json: .*Restore the file, or remove it"):
        run_all(tiny(copied, *SHORT, *(["seed=5"] if other else [])), until="judge")
    assert contents(run) == before


def test_every_flipped_bit_of_a_manifest_is_detected(copied: Path) -> None:
    run = RunFolder(copied / "tiny")
    expected, whole = read_manifest(run), run.manifest.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        run.manifest.write_bytes(damaged)
        try:
            found = read_manifest(run)
        except UserError:
            continue
        # One that hits the digest's own key makes it a manifest of an earlier version, which has none.
        assert found is not None and {key: found[key] for key in expected} == expected


def test_a_manifest_of_an_earlier_version_is_taken(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(copied / "tiny")
    write_json(run.manifest, read_manifest(run))
    capsys.readouterr()
    run_again(copied)
    assert "..." not in capsys.readouterr().err


@foreign
@pytest.mark.parametrize("name", [".hashes.json", ".judge.begun", "recipe.yaml"])
def test_damaged_caches_and_marks_change_nothing(
    name: str, content: bytes, copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "tiny" / name).write_bytes(content)
    capsys.readouterr()
    assert run_again(copied) == contents(finished)
    assert "..." not in capsys.readouterr().err


@foreign
def test_a_stage_with_a_damaged_mark_starts_from_its_beginning(
    content: bytes, copied: Path, finished: Path
) -> None:
    run = RunFolder(copied / "tiny")
    manifest = read_manifest(run)
    assert manifest is not None
    del manifest["stages"]["judge"]
    write_manifest(run, manifest)
    run.verdicts.write_text("of a stage that was cut short")
    (run.path / ".judge.begun").write_bytes(content)
    assert run_again(copied) == contents(finished)


KILLED = """
import os, signal, sys
from pathlib import Path
from allo import pipeline
from tiny_run import tiny

write = pipeline.write_manifest
def dies(run, content):
    write(run, content)
    if "sample" in content["stages"]:
        os.kill(os.getpid(), signal.SIGKILL)
pipeline.write_manifest = dies
pipeline.run_all(tiny(Path(sys.argv[1]), *sys.argv[2:]), until="sample")
"""


def test_a_kill_between_record_and_mark_leaves_no_mark_that_hides_later_damage(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, *SHORT], cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    run = RunFolder(tmp_path / "tiny")
    assert (run.path / ".sample.begun").exists() and "sample" in stages_done(run)
    run_all(tiny(tmp_path, *SHORT), until="sample")
    assert not (run.path / ".sample.begun").exists()
    # Also where the damage comes before the next start: the samples are not taken for those of a resumed stage.
    write_json(run.path / ".sample.begun", {"hash": stages_done(run)["sample"]["hash"], "seconds": 1e6})
    run.completions.write_bytes(run.completions.read_bytes()[:-9])
    assert run_again(tmp_path) == contents(finished)
    assert stages_done(run)["sample"]["seconds"] < 1e5
    assert not list(run.path.glob(".*.begun"))


@foreign
def test_a_malformed_start_is_named(content: bytes, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.start.mkdir()
    (run.start / "start.json").write_bytes(content)
    with pytest.raises(UserError, match=r"start\.json: .*Start its run again"):
        read_start(run)


@foreign
def test_a_malformed_rewriter_record_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(UserError, match=r"rewriter\.json: .*`allo rewriter train`"):
        check_rewriter(tmp_path, load_tokenizer(LAB), policy="p", max_length=1)


ROWS = {"null": "null", "list": "[1]", "other keys": '{"a": 1}', "NULs": "\0\0", "wrong kind": '{"text": 7}'}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_malformed_row_is_named_with_its_line(row: str, finished: Path, tmp_path: Path) -> None:
    lines = RunFolder(finished).verdicts.read_text().splitlines()
    if row.startswith('{"text"'):
        row = json.dumps(json.loads(lines[1]) | json.loads(row))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([lines[0], row, *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:2: .*Run the stage"):
        read_jsonl(path, Verdict)


@foreign
def test_a_report_names_a_malformed_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "08-eval.json").write_bytes(content)
    with pytest.raises(UserError, match=r"08-eval\.json: "):
        view(tmp_path)


def test_a_report_names_a_sealed_file_that_was_changed(tmp_path: Path) -> None:
    eval_ = {"schema": 1, "models": {"aligned": {"label": "a", "sets": {}}}}
    (tmp_path / "08-eval.json").write_text(json.dumps(eval_))
    (tmp_path / "manifest.json").write_text(json.dumps(sealed({"schema": 1, "name": "a"}) | {"name": "b"}))
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        view(tmp_path)


def test_an_error_shows_key_and_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    path.write_text('{"hash": "a", "seconds": "soon"}')
    with pytest.raises(UserError, match=r'mark: `seconds`: .*; found "soon"\. Remove the file'):
        read_as(path, Mark)
    assert read_mark(path) is None


UNREADABLE: list[Callable[[Path], object]] = [Path.mkdir, lambda path: path.symlink_to("nowhere")]


@pytest.mark.parametrize("make", UNREADABLE, ids=["folder", "broken link"])
def test_a_mark_that_cannot_be_read_is_none(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "mark")
    assert read_mark(tmp_path / "mark") is None
