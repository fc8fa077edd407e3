"""The console: bars on a terminal and nowhere else, and text as it was written."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from allo import delta
from allo.console import say, track
from allo.weights.mask_files import mask_from_checkpoints

PROGRAM = "from allo.console import track; list(track(range(3), 'sample', total=3))"


def test_off_a_terminal_no_bar_is_drawn() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_off_a_terminal_a_data_set_loads_without_a_bar(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"prompt": "a", "answer": "1"}\n')
    program = f"from allo.files.rows import hub_rows; print(len(list(hub_rows({str(tmp_path / 'rows')!r}, 'train'))))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_on_a_terminal_a_bar_shows_how_far_it_is() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "sample" in shown and "3/3" in shown


def test_a_bar_shows_what_it_is_told() -> None:
    program = "from allo.console import bar\nwith bar('sample', total=4) as advance: advance(3, '2.5 completions/s')"
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", program], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "3/4" in shown and "2.5 completions/s" in shown


def test_track_yields_what_it_was_given() -> None:
    assert list(track(iter("abc"), "x", total=5, done=2)) == ["a", "b", "c"]


def test_text_is_neither_markup_nor_emoji_nor_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a/b.jsonl:3: [bold]lacks[/bold] :warning: " + "word " * 60 + "end"
    say(text)
    assert capsys.readouterr().err == text + "\n"


class Screen(io.StringIO):
    """A terminal in memory."""

    def isatty(self) -> bool:
        return True


def test_passes_over_weights_show_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    for number, folder in enumerate((base, tuned)):
        folder.mkdir()
        save_file({name: torch.full((3,), float(number)) for name in "abcd"}, folder / "model.safetensors")
    shown = Screen()
    monkeypatch.setattr("allo.console.console", Console(file=shown, force_terminal=True, width=80))
    mask_from_checkpoints(base, tuned, density=0.5, out=tmp_path / "mask.safetensors")
    delta.extract(base, tuned, tmp_path / "delta.safetensors")
    delta.apply(base, tmp_path / "delta.safetensors", tmp_path / "again")
    bars = shown.getvalue()
    assert all(what in bars for what in ("mask, select", "delta, extract", "delta, apply"))
    assert (tmp_path / "again" / "model.safetensors").exists() and "4/4" in bars
