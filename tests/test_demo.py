"""`allo demo` from end to end, on fewer problems."""

import re
import sys
from pathlib import Path

import pytest

from allo import cli
from allo.cli import demo
from allo.files.artifacts import read_json
from allo.recipe import Recipe

# A folder's name that YAML would not read as text.
OUT = "2024"


def reduced(path: Path, overrides: list[str]) -> Recipe:
    from allo.recipe import load_recipe

    fewer = ["evaluate.sets.test.limit=6", "evaluate.sets.reworded.limit=6", "evaluate.num_generations=2"]
    fewer += ["evaluate.kl.limit=4", "improve.training.per_device_train_batch_size=8"]
    if path.stem == "allo":
        fewer += [
            "data.limit=16",
            "sample.num_generations=4",
            "locate.training.per_device_train_batch_size=8",
        ]
    return load_recipe(path, [*overrides, *fewer])


def test_the_demo_prints_a_row_a_model_and_where_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the demo sets it, and taken back after the test
    monkeypatch.setattr(demo, "load_recipe", reduced)
    monkeypatch.setattr(sys, "argv", ["allo", "demo", "--out", OUT])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0
    printed = capsys.readouterr()
    assert "report.html" in printed.err
    for label, run, name in (
        ("start", "allo", "start"),
        ("plain DPO", "dpo", "aligned"),
        ("ALLO", "allo", "aligned"),
    ):
        model = read_json(tmp_path / OUT / run / "08-eval.json")["models"][name]
        (line,) = (line for line in printed.out.splitlines() if re.search(rf"│ {label}\s", line))
        for result in model["sets"].values():
            assert f"{result['sampled']['accuracy']:.3f}" in line
        assert name == "start" or f"{model['trained_weights']:,}" in line
    page = (tmp_path / OUT / "report.html").read_text(encoding="utf-8")
    assert "aligned (dpo)" in page
    assert "aligned (allo)" in page
