"""`--processes`: torchrun gets the command without it, and its exit code is passed on; what cannot be shared is refused."""

import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from allo.cli import app
from allo.compare import compare
from allo.errors import UserError
from allo.models.device import resolve_device
from allo.pipeline import launch
from allo.ranks.group import state
from allo.recipe import load_recipe
from tiny_run import RECIPE


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the second of two processes on a machine."""
    group = SimpleNamespace(rank=1, size=2, shared=False, place={"LOCAL_RANK": "1"})
    monkeypatch.setattr(state, "group", group)


@pytest.mark.parametrize(
    "given",
    [
        ["run", "a.yaml", "--processes", "2", "--set", "name=b"],
        ["run", "--processes=2", "a.yaml", "--set", "name=b"],
        ["run", "a.yaml", "--set", "name=b", "--processes", "2"],
    ],
)
@pytest.mark.parametrize("code", [0, 2, 130])
def test_processes_are_started_with_the_same_command_and_their_code_is_passed_on(
    given: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def launched(number: int, arguments: list[str]) -> int:
        started.append((number, arguments))
        return code

    monkeypatch.setattr(launch, "launch", launched)
    monkeypatch.setattr(sys, "argv", ["allo", *given])
    assert CliRunner().invoke(app, given).exit_code == code
    assert started == [(2, ["run", "a.yaml", "--set", "name=b"])]


@pytest.mark.usefixtures("joined")
def test_processes_are_not_started_by_each_of_several() -> None:
    with pytest.raises(UserError, match="--processes 2: a launcher has started several already"):
        launch.launch(2, ["run", "a.yaml"])


@pytest.mark.usefixtures("joined")
def test_a_comparison_has_either_jobs_or_processes() -> None:
    with pytest.raises(UserError, match="--jobs 2: several processes share each trial already"):
        compare(load_recipe(RECIPE), jobs=2)


@pytest.mark.usefixtures("joined")
def test_each_process_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device(name) for name in ("auto", "cuda", "cpu")] == [
        torch.device("cuda", 1),
        torch.device("cuda", 1),
        torch.device("cpu"),
    ]


@pytest.mark.parametrize(("exitcode", "code"), [(2, 2), (130, 130), (-signal.SIGKILL, 1)])
def test_a_process_that_was_killed_is_named_since_it_cannot_speak(
    exitcode: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error: Any = SimpleNamespace(get_first_failure=lambda: (3, SimpleNamespace(exitcode=exitcode)))
    assert launch.code_of(error, 4) == code
    said = capsys.readouterr().err
    assert ("process 3 of 4 was ended by SIGKILL" in said) == (exitcode < 0)
