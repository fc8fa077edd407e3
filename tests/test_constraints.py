"""The two files of versions: the lowest that pyproject.toml allows, and those that all tests pass with."""

import re
from pathlib import Path

import pytest
from packaging.version import Version

import lowest_versions


def pins(name: str) -> dict[str, str]:
    lines = (lowest_versions.ROOT / name).read_text(encoding="utf-8").splitlines()
    found = (line.split("==") for line in lines if not line.startswith("#"))
    return {re.sub("[-_.]+", "-", package).lower(): version.removesuffix(".*") for package, version in found}


def test_the_lowest_versions_are_those_of_the_project() -> None:
    content = lowest_versions.HEAD + "".join(lowest_versions.lowest())
    assert lowest_versions.FILE.read_text(encoding="utf-8") == content


def test_no_lowest_version_is_above_the_pinned_one() -> None:
    lowest, pinned = pins("constraints-lowest.txt"), pins("constraints.txt")
    assert {"transformers", "accelerate", "trl", "peft", "torch", "pydantic", "typer"} <= lowest.keys()
    above = {name for name, version in lowest.items() if Version(version) > Version(pinned[name])}
    assert not above
    assert lowest["torch"] == pinned["torch"], "older builds of torch bring gigabytes"


def test_an_old_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = lowest_versions.FILE.read_text(encoding="utf-8").replace("typer==", "typer==0.")
    monkeypatch.setattr(lowest_versions, "FILE", tmp_path / "constraints-lowest.txt")
    monkeypatch.setattr("sys.argv", ["lowest_versions.py", "--check"])
    assert lowest_versions.main() == 1
    lowest_versions.FILE.write_text(old, encoding="utf-8")
    assert lowest_versions.main() == 1
    monkeypatch.setattr("sys.argv", ["lowest_versions.py"])
    assert lowest_versions.main() == 0
    monkeypatch.setattr("sys.argv", ["lowest_versions.py", "--check"])
    assert lowest_versions.main() == 0
