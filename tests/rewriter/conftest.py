"""Fixtures of the tests of rewriters: the tiny run up to its pairs."""

from pathlib import Path

import pytest

from allo.files.artifacts import RunFolder
from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.rewriter.cases import Run, open_run
from tiny_run import RECIPE, overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Make the tiny run up to its pairs, from the unchanged laboratory model."""
    out = tmp_path_factory.mktemp("runs")
    return run_all(load_recipe(RECIPE, overrides(out, "sft=null")), until="pair")


@pytest.fixture(scope="module")
def run(folder: RunFolder) -> Run:
    return open_run(folder.path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"
