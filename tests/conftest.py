"""Fixtures of several test files."""

from pathlib import Path

import pytest

from model_folders import copy_of, plain


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model's folder; nobody writes into it."""
    return plain(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of the small model's folder, to be damaged."""
    return copy_of(whole, tmp_path / "model")
