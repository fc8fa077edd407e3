"""The benchmarks of files run, and their checkpoints are what they say: a few values tie, rows differ."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from allo.weights.checkpoints import Checkpoint
from benchmarks.files import gap_code, selection


def figures(
    benchmark: ModuleType, arguments: list[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output", str(output)])
    benchmark.main()
    record = json.loads(output.read_text())
    return [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]


def test_selection_is_timed_beside_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(folder: Path, *, density: float, repeats: int, cold: bool) -> dict[str, list[dict[str, float]]]:
        kinds = ("plain", "threads", "select")
        return {kind: [selection.once(kind, folder, density) for _ in range(repeats)] for kind in kinds}

    monkeypatch.setattr(selection, "measure", here)
    (tmp_path / "made").mkdir()
    arguments = [
        "--folder",
        str(tmp_path / "made"),
        "--gigabytes",
        "0.002",
        "--scale",
        "32",
        "--repeats",
        "1",
    ]
    disk, cache = figures(selection, arguments, tmp_path / "record.json", monkeypatch)
    assert (disk["read from"], cache["read from"]) == ("disk", "page cache")
    for row in (disk, cache):
        assert row["select / threads"] == pytest.approx(row["select, s"] / row["threads, s"])
        assert row["select / plain"] == pytest.approx(row["select, s"] / row["plain, s"])
        assert row["GB each"] >= 0.002
    assert list((tmp_path / "made").iterdir()) == [], "the checkpoints are removed"


def test_the_generated_changes_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection.generate(tmp_path, 1_000_000, scale=32)
    base, tuned = Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "tuned")
    assert len(base.files) > 1 and base.shapes == tuned.shapes
    name = "model.layers.0.mlp.up_proj.weight"
    change = (tuned.read(name).float() - base.read(name).float()).abs()
    assert 0.2 < float((change > 0).float().mean()) < 0.95
    assert len(change.unique()) < change.numel() / 20
    by_row = (change > 0).float().mean(dim=1)
    assert float(by_row.std()) > 0.1


def test_the_gap_codes_figures_meet_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_code, "WIDTH", 1 << 10)
    rows = figures(gap_code, ["--tensors", "1", "--repeats", "1"], tmp_path / "record.json", monkeypatch)
    at = {row["density"]: row for row in rows if row["mask"] == gap_code.RANDOM}
    assert at[0.05]["bytes an entry"] <= 0.75 and at[0.1]["bytes an entry"] <= 0.61
    assert at[0.05]["delta / bf16 checkpoint"] <= 0.075
    for row in at.values():
        assert row["bytes an entry"] > row["entropy of random ones"] * 0.99
    for row in rows[len(at) :]:
        assert row["bytes an entry"] < row["entropy of random ones"], "structure costs less"
