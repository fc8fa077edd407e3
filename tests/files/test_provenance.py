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


@pytest.mark.parametrize(
    ("package", "is_source"), [("src/allo", True), (".venv/lib/python3/site-packages/allo", False)]
)
def test_the_commit_is_that_of_the_packages_own_source_tree(
    package: str, is_source: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / package).mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / package / "provenance.py"))
    assert provenance.provenance()["commit"] is None
    commit = committed(tmp_path)
    found = provenance.provenance()
    assert (found["commit"], found["dirty"]) == ((commit, False) if is_source else (None, None))


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
