"""A delta says which dtypes its base has, so that a GGUF base is converted to them without a guess."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from allo.delta import extract, merge, read_delta

WEIGHTS = {"router": torch.zeros(4, dtype=torch.float32), "up": torch.zeros(4, dtype=torch.bfloat16)}


def folder(path: Path, **changed: torch.Tensor) -> Path:
    path.mkdir()
    save_file(WEIGHTS | changed, path / "model.safetensors")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder(tmp_path / "base")


@pytest.mark.parametrize("touched", [("router",), ("up",), ("router", "up"), ()])
def test_the_dtypes_are_the_bases_whatever_was_touched(
    base: Path, tmp_path: Path, touched: tuple[str, ...]
) -> None:
    tuned = folder(tmp_path / "tuned", **{name: WEIGHTS[name] + 1 for name in touched})
    extract(base, tuned, tmp_path / "delta.safetensors")
    found = read_delta(tmp_path / "delta.safetensors")
    assert found.indices.keys() == set(touched)
    assert found.base_dtypes == {torch.float32, torch.bfloat16}


def test_a_merged_delta_keeps_them(base: Path, tmp_path: Path) -> None:
    for name in WEIGHTS:
        extract(base, folder(tmp_path / name, **{name: WEIGHTS[name] + 1}), tmp_path / f"{name}.safetensors")
    merge(tmp_path / "router.safetensors", tmp_path / "up.safetensors", tmp_path / "both.safetensors")
    assert read_delta(tmp_path / "both.safetensors").base_dtypes == {torch.float32, torch.bfloat16}


def test_an_older_delta_and_a_strange_name_have_those_of_its_values(base: Path, tmp_path: Path) -> None:
    tuned = folder(tmp_path / "tuned", up=WEIGHTS["up"] + 1)
    extract(base, tuned, tmp_path / "delta.safetensors")
    found = read_delta(tmp_path / "delta.safetensors")
    for metadata in ({}, {"base_dtypes": ""}, {"base_dtypes": "load int8"}):
        assert replace(found, metadata=metadata).base_dtypes == {torch.bfloat16}
