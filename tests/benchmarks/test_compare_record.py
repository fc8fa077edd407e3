"""A comparison's records hold what its summary says, with the trials' own origin; its plots show each point."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import render_tables
import synthetic_comparison as synthetic
from allo.compare.summary import summarise
from allo.stats import statistics
from benchmarks import plot
from benchmarks.compare import draw, keep
from benchmarks.compare import record as recorder

SVG = "{http://www.w3.org/2000/svg}"
FOUR_DIGITS = 5e-5
PIXEL = 0.11


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "FLIPS", 199)
        yield SimpleNamespace(record=recorder, keep=keep, draw=draw, plot=plot, tables=render_tables)


@pytest.fixture(scope="module")
def folder(scripts: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison")
    synthetic.write(path)
    return path


def recorded(scripts: SimpleNamespace, folder: Path, output: Path, *options: str) -> dict[str, Any]:
    assert scripts.record.main([str(folder), "--output", str(output), *options]) == 0
    record: dict[str, Any] = json.loads(output.read_text())
    scripts.tables.check_record(record, name=output.name)
    return record


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]


def test_a_record_of_methods_holds_the_summarys_figures(
    scripts: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    record = recorded(scripts, folder, tmp_path / "r.json", "--table", "lab-methods", "--command", "make it")
    found = {row["method"]: row for row in rows(record)}
    assert list(found) == ["start", "allo", "dpo", "simpo"], "the start, then the reference"
    entry = summarise(folder)["methods"]["dpo"]
    figure, compared = entry["sets"]["test"]["sampled"], entry["against"]["sets"]["test"]["sampled"]
    assert found["dpo"]["test, sampled"] == pytest.approx(figure, abs=FOUR_DIGITS)
    assert found["dpo"]["test, less allo"] == pytest.approx(compared["difference"], abs=FOUR_DIGITS)
    assert found["dpo"]["test, p"] == pytest.approx(compared["p_holm"], rel=0.05)
    assert found["dpo"]["test, pass@8"] is not None and "test, pass@4" not in found["dpo"]
    assert found["allo"]["test, less allo"] is None
    assert record["command"].startswith("make it; python -m benchmarks.compare.record ")
    assert str(tmp_path) not in json.dumps(record) and str(folder) not in json.dumps(record)


def test_a_record_of_costs_has_none_for_the_start(
    scripts: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    record = recorded(scripts, folder, tmp_path / "r.json", "--table", "costs", "--costs")
    found = {row["method"]: row for row in rows(record)}
    assert (found["start"]["seconds"], found["start"]["weights trained"]) == (None, None)
    assert found["allo"]["weights trained"] == 100_000 and found["dpo"]["state, MB"] == 1
    less = found["dpo"]["KL less allo"]
    assert 0 < less["low"] < less["value"] < less["high"]


@pytest.mark.parametrize("option", [(), ("--costs",), ("--short",)])
def test_a_record_says_what_each_method_sees(
    scripts: SimpleNamespace, folder: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    record = recorded(scripts, folder, tmp_path / "r.json", "--table", "t", *option)
    found = {row["method"]: row["sees"] for row in rows(record)}
    assert record["columns"][:2] == ["method", "sees"]
    assert (found["start"], found["dpo"]) == ("", "right samples, wrong samples")


def test_the_short_record_says_what_the_long_ones_say(
    scripts: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    short, long, costs = (
        rows(recorded(scripts, folder, tmp_path / "r.json", "--table", "t", *option))
        for option in (["--short"], [], ["--costs"])
    )
    for one, accuracies, cost in zip(short, long, costs, strict=True):
        assert one.items() <= (accuracies | cost).items() and "seconds" in one


def test_the_headline_has_five_columns_of_the_short_record_and_is_drawn_against_kl(
    scripts: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    record = recorded(scripts, folder, tmp_path / "r.json", "--table", "t", "--short")
    headline, short = scripts.tables.headline(record), rows(record)
    assert len(headline["columns"]) == 5
    for one, other in zip(rows(headline), short, strict=True):
        assert one.items() <= other.items()
    panel, *_ = scripts.draw.panels(short)
    dpo = next(row for row in short if row["method"] == "dpo")
    (drawn,) = panel.lines["dpo"]
    assert (drawn.x, drawn.y) == (dpo[scripts.draw.KL]["value"], dpo[panel.title]["value"])
    assert "start" not in panel.lines, "it has no distance to itself"


def test_kept_trials_give_the_same_record_as_their_folder(
    scripts: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "lab.jsonl.xz"
    assert scripts.keep.main([str(folder), "--output", str(kept)]) == 0
    whole, again = (recorded(scripts, place, tmp_path / "r.json", "--table", "t") for place in (folder, kept))
    assert again["rows"] == whole["rows"] and again["commit"] == whole["commit"]
    scripts.keep.unpack(kept, tmp_path / "back")
    trials = sorted((folder / "trials").rglob("*.json"))
    assert [path.read_bytes() for path in trials] == [
        (tmp_path / "back" / path.relative_to(folder)).read_bytes() for path in trials
    ]


def test_methods_are_chosen_and_ordered(scripts: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    record = recorded(scripts, folder, tmp_path / "r.json", "--table", "few", "--methods", "simpo,allo")
    assert [row["method"] for row in rows(record)] == ["simpo", "allo"]
    assert scripts.record.main([str(folder), "--table", "x", "--methods", "none"]) == 2


def test_a_sweep_is_in_the_order_of_its_key(scripts: SimpleNamespace, tmp_path: Path) -> None:
    densities = {"much": 1.0, "little": 0.01, "allo": 0.1}
    synthetic.write(
        tmp_path,
        methods={n: synthetic.Method(0.6, 0.1 * d, density=d) for n, d in densities.items()},
        seeds=(0, 1),
    )
    options = ("--table", "sweep", "--over", "improve.density", "--methods", "much,little,allo")
    record = recorded(scripts, tmp_path, tmp_path / "r.json", *options)
    assert [(row["improve.density"], row["method"]) for row in rows(record)] == [
        *((0.01, "little"), (0.1, "allo"), (1.0, "much"))
    ]
    assert scripts.record.main([str(tmp_path), "--table", "x", "--over", "improve.keep"]) == 2


@pytest.mark.invariant("Tuning trials enter no result; uncommitted ones make no record.")
def test_trials_of_two_commits_are_listed_and_dirty_ones_refused(
    scripts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write(tmp_path, seeds=(0, 1))
    path = next(tmp_path.glob("trials/dpo/test-*-seed-0.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"commit": "f" * 40}))
    record = recorded(scripts, tmp_path, tmp_path / "r.json", "--table", "two")
    assert record["commit"] == f"{synthetic.COMMIT} {'f' * 40}"
    assert "commits 0123456, fffffff" in scripts.tables.render([record])
    path.write_text(json.dumps(content | {"dirty": True}))
    assert scripts.record.main([str(tmp_path), "--table", "two", "--output", str(tmp_path / "n.json")]) == 2
    assert path.name in capsys.readouterr().err and not (tmp_path / "n.json").exists()


def test_rates_are_drawn_point_by_point_with_their_intervals(
    scripts: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    record = recorded(
        scripts, folder, tmp_path / "rates.json", "--table", "rates", "--rates", "--methods", "allo,dpo"
    )
    assert len(record["rows"]) == 2 * len(synthetic.RATES)
    scripts.draw.main([str(tmp_path / "rates.json"), "--plots", str(tmp_path)])
    root = ET.fromstring((tmp_path / "rates.svg").read_text())
    accuracy, kl = root.findall(f"{SVG}g")
    for number, name in enumerate(("allo", "dpo")):
        path = accuracy.find(f"{SVG}polyline[@class='line{number}']")
        assert path is not None
        places = [tuple(map(float, point.split(","))) for point in path.attrib["points"].split()]
        own = [row["validation accuracy"] for row in rows(record) if row["method"] == name]
        steps = [b[0] - a[0] for a, b in pairwise(places)]
        assert max(steps) - min(steps) < 2 * PIXEL, (
            "rates that double are evenly spaced on a logarithmic axis"
        )
        heights = [(places[0][1] - y) / (places[0][1] - places[1][1]) for _, y in places]
        values = [(one["value"] - own[0]["value"]) / (own[1]["value"] - own[0]["value"]) for one in own]
        assert heights == pytest.approx(values, abs=0.05)
        bars = accuracy.findall(f"{SVG}line[@class='interval line{number}']")
        assert len(bars) == len(own)
        for bar, (_, y) in zip(bars, places, strict=True):
            assert float(bar.attrib["y2"]) < y < float(bar.attrib["y1"])
    assert len(kl.findall(f"{SVG}polyline")) == 2


def test_losses_are_means_over_seeds_with_their_range_drawn_step_by_step(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    methods = {
        "top": synthetic.Method(0.6, losses=(0.7, 0.5, 0.4, 0.3, 0.25)),
        "full": synthetic.Method(0.6, losses=(0.7, 0.6, 0.5)),
    }
    synthetic.write(tmp_path, methods=methods, seeds=(0, 1))
    options = ("--table", "curves", "--reference", "top", "--losses", "improve")
    record = recorded(scripts, tmp_path, tmp_path / "curves.json", *options)
    assert record["columns"] == ["step", "top", "full"]
    assert record["command"].endswith("--table curves --reference top --losses improve")
    found = {row["step"]: row for row in rows(record)}
    assert list(found) == [2, 4, 6, 8], "every second step is logged, and the second seed ends one sooner"
    for number, step in enumerate(found):
        first, second = (synthetic.losses(methods["top"], place)[number] for place in (0, 1))
        expected = {"value": (first + second) / 2, "low": first, "high": second}
        assert found[step]["top"] == pytest.approx(expected, abs=FOUR_DIGITS)
    assert [found[step]["full"] is None for step in found] == [False, False, True, True]
    scripts.draw.main([str(tmp_path / "curves.json"), "--plots", str(tmp_path)])
    (panel,) = ET.fromstring((tmp_path / "curves.svg").read_text()).findall(f"{SVG}g")
    for number, (name, steps) in enumerate({"top": 4, "full": 2}.items()):
        assert len(panel.findall(f"{SVG}line[@class='interval line{number}']")) == steps
        path = panel.find(f"{SVG}polyline[@class='line{number}']")
        assert path is not None
        places = [tuple(map(float, point.split(","))) for point in path.attrib["points"].split()]
        heights = [(places[0][1] - y) / (places[0][1] - places[1][1]) for _, y in places]
        values = [row[name]["value"] for row in rows(record) if row[name] is not None]
        drops = [(values[0] - value) / (values[0] - values[1]) for value in values]
        assert heights == pytest.approx(drops, abs=0.05)


def test_losses_that_no_trial_has_are_refused(
    scripts: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts.record.main([str(folder), "--table", "x", "--losses", "forget"]) == 2
    assert "has no losses of forget; it has none" in capsys.readouterr().err


def test_a_plot_brings_colours_for_dark_pages_and_refuses_more_lines_than_it_has(
    scripts: SimpleNamespace,
) -> None:
    plot = scripts.plot
    lines = {f"line {i}": [plot.Mark(1, i), plot.Mark(2, i)] for i in range(len(plot.LIGHT))}
    drawn = plot.figure([plot.Panel("title", "x", lines)])
    light, dark = drawn.split("prefers-color-scheme: dark")
    for number, colours in enumerate(zip(plot.LIGHT, plot.DARK, strict=True)):
        for half, colour in zip((light, dark), colours, strict=True):
            assert re.search(rf"\.line{number} {{ stroke: {colour};", half)
    with pytest.raises(ValueError, match="9 lines"):
        plot.figure([plot.Panel("title", "x", lines | {"more": [plot.Mark(1, 1)]})])


def test_a_name_that_looks_like_markup_stays_text(scripts: SimpleNamespace) -> None:
    plot = scripts.plot
    drawn = plot.figure([plot.Panel("a < b & c", "x", {"<script>": [plot.Mark(1, 1)]})])
    assert "<script>" not in drawn
    assert "<script>" in [text.text for text in ET.fromstring(drawn).iter(f"{SVG}text")]
