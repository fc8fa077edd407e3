"""`allo align` with a reward: errors come before the recipe and the model, and the preview says what carries loss."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from allo.cli import app
from allo.errors import UserError
from start_rows import rows, write
from tiny_run import LAB

GOOD = "def f(completions, **columns):\n    return [-float(len(text)) for text in completions]\n"
BAD = {
    "raises": (
        "def f(completions, **columns):\n    return [text.nothing for text in completions]\n",
        "AttributeError",
    ),
    "signature": ("def f(texts):\n    return texts\n", "missing a required argument"),
    "length": ("def f(completions, **columns):\n    return [1.0]\n", "returned 1 rewards"),
    "load": ("import nothing_of_this_name\n", "fails to load"),
    "name": ("def g(completions):\n    return completions\n", "has no function 'f'"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "prompts.jsonl", rows("prompts"))
    (tmp_path / "own.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def align(*words: str) -> Any:
    return CliRunner().invoke(app, ["align", *words, "--reward", "own.py:f", "--dry-run"])


@pytest.mark.parametrize("kind", BAD)
def test_a_functions_error_comes_first_and_no_model_is_read(folder: Path, kind: str) -> None:
    source, error = BAD[kind]
    (folder / "own.py").write_text(source)
    done = align("no/such-model-anywhere", "prompts.jsonl")
    assert isinstance(done.exception, UserError) and error in str(done.exception)
    assert "not written" not in done.output and "name:" not in done.output


def test_the_preview_shows_the_rewards_and_what_carries_loss(folder: Path) -> None:
    done = align(str(LAB), "prompts.jsonl")
    assert done.exception is None, done.exception
    said = " ".join(done.output.split())
    assert (
        "own.py:f was tried on the first 4 rows, and returned for an empty answer 0, 0, 0, 0; the prompt"
        in said
    )
    assert (
        "the completion with the higher reward is chosen, and the one with the lower reward rejected" in said
    )
    assert "All tokens of the chosen one carry loss. Of the rejected one, forget weighs" in said
    assert "improve counts 50% of them" in said


def test_a_fault_of_the_rows_is_said_before_the_recipe(folder: Path) -> None:
    done = align(str(LAB), "prompts.jsonl", "--set", "max_length=2")
    assert isinstance(done.exception, UserError) and "not written" not in done.output
