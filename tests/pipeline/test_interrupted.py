"""Ctrl-C, a full disk, a folder that cannot be written: said in a line, and gone on with afterwards."""

import errno
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from allo import cli
from allo.files import artifacts
from allo.pipeline import run_all
from tiny_run import command, contents, environment, tiny

# Sampling and one training stage, each long enough to be met in the middle of.
SHORT = (
    "sft=null",
    "score=null",
    "forget=null",
    "locate.criterion=magnitude",
    "sample.batch_size=4",
    "improve.training.num_train_epochs=8",
    "improve.training.save_steps=2",
)
# A full disk is met while anything of training is written.
BRIEF = (*SHORT, "sample.batch_size=16", "improve.training.num_train_epochs=2", "improve.density=1.0")
RESUMES = "start the same command again to resume from the last file saved"
LONGEST = 900  # seconds for one process


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A handler here means the default one in new processes, also where pytest itself ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def allo(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command("run", out, *SHORT), "--until", "improve"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def interrupt_when(out: Path, there: str, number: signal.Signals) -> str:
    """Start, and send a signal once a file is there; returns what was said."""
    process = allo(out)
    deadline = time.monotonic() + LONGEST
    while not any((out / "tiny").glob(there)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LONGEST)
    assert process.returncode == 130, stderr
    assert stdout == "" and "Traceback" not in stderr
    return stderr


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_and_sigterm_stop_with_130_and_the_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    expected = contents(run_all(tiny(tmp_path / "whole", *SHORT), until="improve").path)
    out = tmp_path / "interrupted"
    for there, stage, number in [
        ("*.waves.part", "sample", signal.SIGINT),
        ("07-improve/*/complete", "improve", signal.SIGTERM),
    ]:
        said = interrupt_when(out, there, number).splitlines()
        assert said[-2].startswith(f"{stage:<9} stage ") and said[-2].endswith("...")
        at = rf"stage \d of \d, {stage}, {'step' if stage == 'improve' else 'batch'} \d+/\d+"
        assert re.fullmatch(rf"allo: interrupted \({at}\); {RESUMES}", said[-1])
    assert not (out / "tiny" / "07-improve" / "delta.safetensors").exists()
    process = allo(out)
    _, stderr = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, stderr
    assert contents(out / "tiny") == expected


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_write_in_progress_is_finished_before_the_command_ends(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def write() -> None:
        with artifacts.uninterrupted():
            signal.raise_signal(number)
            done.append("written")
        done.append("gone on")

    monkeypatch.setattr(cli, "app", write)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    signal.signal(signal.SIGTERM, before)
    assert (done, leaving.value.code) == (["written"], 130)
    assert capsys.readouterr().err.splitlines() == [f"allo: interrupted; {RESUMES}"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    said = capsys.readouterr().err
    assert leaving.value.code == 2, said
    return said.splitlines()[-1]


# Full early, in the middle and late.
@pytest.mark.parametrize(
    "megabytes", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(9, marks=pytest.mark.slow)]
)
def test_a_full_disk_is_said_and_with_room_the_run_goes_on(
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    megabytes: int,
) -> None:
    """It fills up while a mask, a delta or a checkpoint is written, whichever library writes it."""
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", small_disk], check=True)
    argv = [*command("run", small_disk, *BRIEF)[2:], "--until", "improve"]
    said = refused(monkeypatch, capsys, argv)
    before = "are free on that disk. Make room" in said  # seen before the first stage
    assert said.startswith("allo: ")
    assert before or ("o space left" in said and "start it again" in said)
    assert not list((small_disk / "tiny").rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    recipe = tiny(small_disk, *BRIEF)
    assert (run_all(recipe, until="improve").path / "07-improve" / "delta.safetensors").exists()


def test_a_disk_that_fills_up_in_a_small_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    said = refused(monkeypatch, capsys, command("run", tmp_path)[2:])
    assert "No space left on device" in said and "start again" in said
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [".lock"]


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(
    reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(reason, "cannot", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = refused(monkeypatch, capsys, command("run", tmp_path)[2:])
    assert f"{tmp_path}/tiny: cannot write the run folder" in said and "--set out=DIR" in said


def test_a_file_in_the_way_of_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny").write_text("")
    assert "cannot write the run folder" in refused(monkeypatch, capsys, command("run", tmp_path)[2:])
