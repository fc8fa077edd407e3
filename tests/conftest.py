"""Fixtures of several test files."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from model_folders import copy_of, plain

# For `make mutants`: the same examples for every mutant, and no search for the smallest failing one.
settings.register_profile(
    "mutants", derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate)
)


def pytest_collection_finish() -> None:
    """Exempt all that collection made from garbage collection: accelerate collects whenever a training begins."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_sync() -> Iterator[None]:
    """Leave files to the operating system: what a test writes need not outlive the machine, and a disk takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model's folder; nobody writes into it."""
    return plain(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of the small model's folder, to be damaged."""
    return copy_of(whole, tmp_path / "model")
