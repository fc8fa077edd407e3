"""The benchmark of the backward pass: its ways train the same share, from the same loss, each its own entries."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from allo.weights.places import Columns, Entries, Rows
from benchmarks.rows import backward

EQUAL = {"rtol": 1e-4, "atol": 1e-9}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    small = ["--layers", "2", "--size", "20", "--tokens", "3", "--rounds", "2"]
    output = ["--output", str(tmp_path / "results" / "record.json")]
    monkeypatch.setattr(sys, "argv", ["backward.py", *small, *output])
    return backward


def test_every_way_trains_the_same_share_of_its_own_kind(benchmark: ModuleType) -> None:
    kinds = {benchmark.ENTRIES: Entries, "rows": Rows, "columns": Columns}
    options = benchmark.Options(size=20, layers=2, density=0.1, device="cpu")
    for name, selection in benchmark.SELECTIONS.items():
        model = benchmark.stack(options, torch.float32)
        selected = benchmark.select(model, selection, options)
        assert selected.num_selected == 2 * 20 * 2, name
        assert {type(part.places) for part in selected._parts} == {kinds[name]}
        x = torch.ones(3, 20).requires_grad_()
        assert benchmark.backward_seconds(model, selected.parameters(), x) > 0
        found = torch.cat(list(selected.gradients().values()))
        dense = benchmark.stack(options, torch.float32)
        dense(torch.ones(3, 20)).square().mean().backward()
        expected = [
            part.places.gather(param.grad)
            for part, param in zip(selected._parts, dense.parameters(), strict=True)
        ]
        torch.testing.assert_close(found, torch.cat(expected), **EQUAL)


def test_the_record_compares_with_single_entries_and_with_all_weights(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    benchmark.main()
    record = json.loads((tmp_path / "results" / "record.json").read_text())
    rows = [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]
    assert len(rows) == 2 * 4, "two dtypes, four ways"
    for row in rows:
        (base,) = (
            other
            for other in rows
            if other["dtype"] == row["dtype"] and other["trained"] == benchmark.ENTRIES
        )
        # Seconds are rounded to a millionth, ratios to a thousandth.
        ratio = row["backward, s"] / base["backward, s"]
        assert row["of single entries"] == pytest.approx(ratio, rel=0.05)
