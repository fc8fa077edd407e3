"""`allo --version`, `allo env` and shell completion: quick, without secrets, and in no one's way."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from allo.models.environment import environment

PROGRAM = "import sys; sys.argv[0] = 'allo'; from allo.cli import main; main()"


def allo(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `allo`; the answers here must not need torch, which a broken one in its place shows."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def no_torch(tmp_path: Path) -> str:
    """A search path on which torch fails to load."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n")
    return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])


def test_the_version_is_the_packages_and_loads_no_torch(no_torch: str) -> None:
    done = allo("--version", PYTHONPATH=no_torch)
    assert (done.returncode, done.stdout) == (0, f"allo {importlib.metadata.version('allo-align')}\n")
    assert done.stderr == ""


def test_a_shell_completes_commands_stages_and_options_without_torch(no_torch: str) -> None:
    def completed(words: str, at: int) -> list[str]:
        shell = {"_ALLO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return allo(PYTHONPATH=no_torch, **shell).stdout.split()

    assert completed("allo ru", 1) == ["run"]
    assert {"env", "evaluate"} <= set(completed("allo e", 1))
    assert "report" in completed("allo re", 1) and completed("allo delta ap", 2) == ["apply"]
    assert "--until" in completed("allo run x.yaml --un", 3)


def test_a_command_without_words_still_shows_the_help() -> None:
    done = allo(COLUMNS="200")
    assert "Align language models" in done.stdout + done.stderr and "--version" in done.stdout + done.stderr


def test_the_environment_names_versions_device_and_memory_and_no_secret_or_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    found = environment()
    assert {"allo", "python", "torch", "transformers", "device: auto", "CPU", "memory"} <= found.keys()
    assert found["torch"] == importlib.metadata.version("torch")
    text = json.dumps(found)
    assert "secret" not in text and "someone" not in text
    assert os.sep not in "".join(found.values())


def test_a_package_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = environment()
    assert (found["vllm"], found["trl"]) == ("not installed", "1.2.3")
