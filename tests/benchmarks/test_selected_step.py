"""The memory benchmark runs, and the training state is what the design promises."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import selected_step

# A selected bf16 weight: index, master, gradient, two moments; and 8 for each tensor's only block.
BYTES_A_SELECTED_WEIGHT = 2 + 4 + 4 + 2 * 4
SLOT = 2
BYTES_A_TENSOR = 8
# Lean: index, residual, gradient, two codes; and at most a block's gradient, codes and scales a tensor.
LEAN_BYTES_A_SELECTED_WEIGHT = 2 + 2 + 2 + 2
LEAN_BYTES_A_TENSOR = BYTES_A_TENSOR + 256 * (2 + 2) + 2 * 4


def figures_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """Return the benchmark's record of a stack of two 40 x 40 layers."""
    output = tmp_path / "results" / "record.json"  # a fresh clone has no such folder
    arguments = ["--layers", "2", "--size", "40", "--every", "20", "--output", str(output), *options]
    monkeypatch.setattr(sys, "argv", [str(selected_step.__file__), *arguments])
    selected_step.main()
    record = json.loads(output.read_text())
    assert record["command"].startswith("python -m benchmarks.memory.selected_step --layers 2 ")
    return dict(zip(record["columns"], record["rows"][0], strict=True))


def test_the_state_costs_18_bytes_a_selected_weight_and_a_slot_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = figures_of(tmp_path, monkeypatch)
    assert (figures["weights"], figures["density"]) == (2 * 40 * 40, 0.05)
    assert figures["state, B/weight"] == pytest.approx(
        0.05 * BYTES_A_SELECTED_WEIGHT + 2 * BYTES_A_TENSOR / figures["weights"]
    )
    assert figures["slot, B/weight"] == pytest.approx(0.05 * SLOT)


def test_the_lean_state_costs_8_bytes_and_the_slot_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = figures_of(tmp_path, monkeypatch, "--lean")
    least = 0.05 * LEAN_BYTES_A_SELECTED_WEIGHT
    most = least + 2 * LEAN_BYTES_A_TENSOR / figures["weights"]
    assert figures["device"] == "cpu, lean"
    assert least < figures["state, B/weight"] <= most
