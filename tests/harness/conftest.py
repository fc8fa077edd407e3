"""Fixtures of the tests of harnesses: a changed model, and a run whose last training made the change."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from allo import delta
from allo.files.artifacts import RunFolder
from allo.models.start import write_start
from harness_setup import MAX_NEW_TOKENS, NUM_PROBLEMS, SHORT, SIZE_OF_CHANGE
from tiny_run import LAB, tiny


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the laboratory's model, changed in every third weight."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    shutil.copytree(LAB, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        some = tensor.view(-1)[::3]
        some += SIZE_OF_CHANGE * some.std() * torch.randn(some.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def change(tuned: Path) -> Path:
    file = tuned.parent / "delta.safetensors"
    delta.extract(LAB, tuned, file)
    return file


@pytest.fixture
def trained_run(tmp_path: Path, change: Path) -> tuple[Any, RunFolder]:
    """Return a recipe and its run whose last training made `change`, with 20 problems to evaluate."""
    limit = f"evaluate.sets.test.limit={NUM_PROBLEMS}"
    recipe = tiny(tmp_path, *SHORT, limit, f"evaluate.max_new_tokens={MAX_NEW_TOKENS}")
    run = RunFolder(recipe.run_folder)
    run.start.mkdir(parents=True)
    write_start(run, LAB)
    run.improve.mkdir()
    shutil.copy(change, run.improve / "delta.safetensors")
    return recipe, run
