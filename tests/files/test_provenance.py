"""Provenance of what was used: only this source's commit, and a GPU only if one was used."""

import mmap
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from allo.files import provenance

SIZE = 64 << 20


def committed(root: Path) -> str:
    """Commit everything below `root` to a new repository, and return the commit."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        command = ["git", "-C", str(root), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--allow-empty", "-m", "all")
    return git("rev-parse", "HEAD")


def test_the_commit_is_that_of_this_source_tree() -> None:
    assert (provenance.ROOT / "src" / "allo" / "files" / "provenance.py").samefile(provenance.__file__)


def test_the_commit_is_of_a_repository_itself_and_not_of_one_around_it(tmp_path: Path) -> None:
    installed = tmp_path / ".venv" / "lib"
    installed.mkdir(parents=True)
    assert provenance.commit_of(tmp_path) == {"commit": None, "dirty": None}
    commit = committed(tmp_path)
    assert provenance.commit_of(tmp_path) == {"commit": commit, "dirty": False}
    assert provenance.commit_of(installed) == {"commit": None, "dirty": None}


def test_a_change_makes_a_tree_dirty_unless_it_is_ignored(tmp_path: Path) -> None:
    committed(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "one.json").write_text("{}")
    assert provenance.commit_of(tmp_path)["dirty"]
    assert not provenance.commit_of(tmp_path, ignored=["results"])["dirty"]
    (tmp_path / "source.py").write_text("")
    assert provenance.commit_of(tmp_path, ignored=["results"])["dirty"]


def test_the_peak_is_what_was_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if an available GPU was not used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    provenance.reset_peak_memory()
    before = provenance.peak_memory()
    # New pages, touched: an allocator may serve a tensor from memory that is resident already.
    with mmap.mmap(-1, SIZE) as pages:
        pages[:: mmap.PAGESIZE] = b"1" * (SIZE // mmap.PAGESIZE)
    assert before + SIZE // 2 < provenance.peak_memory()


def test_a_gpu_is_named_and_measured_once_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    without = provenance.provenance()
    assert "CPU" in without["hardware"] and "peak_gpu_memory_bytes" not in without
    reset: list[bool] = []
    gpu: dict[str, Any] = {
        "is_initialized": lambda: True,
        "get_device_name": lambda: "a GPU",
        "max_memory_allocated": lambda: SIZE,
        "reset_peak_memory_stats": lambda: reset.append(True),
    }
    for name, function in gpu.items():
        monkeypatch.setattr(torch.cuda, name, function)
    provenance.reset_peak_memory()
    used = provenance.provenance()
    assert used["hardware"] == f"a GPU, {without['hardware']}"
    assert used["peak_gpu_memory_bytes"] == SIZE and reset
