"""The documents' tables come from records, and stale ones are found."""

import json
from pathlib import Path
from typing import Any

import pytest

import render_tables as tables
import targets

ROOT = Path(__file__).resolve().parents[2]
RECORD: dict[str, Any] = {
    "schema": 1,
    "table": "demo",
    "date": "2026-01-02",
    "commit": "0123456789abcdef",
    "dirty": False,
    "machine": "2 cores",
    "command": "make demo",
    "columns": ["model", "accuracy", "weights"],
    "rows": [["SFT", {"value": 0.5, "low": 0.4, "high": 0.6}, 32768]],
}
DOCUMENT = "before\n<!-- table:demo -->\nold\n<!-- /table:demo -->\nafter\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(DOCUMENT)
    return tmp_path


def put(project: Path, name: str, **changes: object) -> None:
    (project / "benchmarks" / "results" / name).write_text(json.dumps(RECORD | changes))


def test_tables_of_this_project_are_up_to_date() -> None:
    assert tables.main(["--check"]) == 0, "a table is stale: run `make tables`"


def test_a_table_is_filled_from_its_record_and_names_its_origin(project: Path) -> None:
    put(project, "a.json")
    assert tables.main(["--check"], root=project) == 1
    assert (project / "README.md").read_text() == DOCUMENT, "--check writes nothing"
    assert tables.main([], root=project) == 0
    text = (project / "README.md").read_text()
    assert "| SFT | 0.5 [0.4, 0.6] | 32,768 |" in text
    assert "`make demo`, 2026-01-02, commit 0123456, 2 cores" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert tables.main(["--check"], root=project) == 0


def test_records_of_one_table_follow_each_other_by_file_name(project: Path) -> None:
    put(project, "b.json", rows=[["second", 2, 2]])
    put(project, "a.json", rows=[["first", 1, 1]])
    tables.main([], root=project)
    text = (project / "README.md").read_text()
    assert text.index("first") < text.index("second")


def test_a_table_without_a_record_says_so(project: Path) -> None:
    tables.main([], root=project)
    assert "No result has been recorded yet." in (project / "README.md").read_text()


@pytest.mark.parametrize(
    "changes", [{"dirty": True}, {"schema": 2}, {"rows": [["a cell too few"]]}, {"unknown": 1}], ids=str
)
def test_bad_records_are_refused(project: Path, changes: dict[str, object]) -> None:
    put(project, "a.json", **changes)
    assert tables.main([], root=project) == 2
    assert (project / "README.md").read_text() == DOCUMENT


def test_a_target_is_met_missed_or_unmeasured() -> None:
    target = targets.Target(
        "delta", "files", lambda row: row["density"] == 0.05, targets.only("share"), at_most=0.075
    )

    def verdict(*rows: list[float]) -> list[Any]:
        record = RECORD | {"columns": ["density", "share"], "rows": list(rows)}
        return target.row({"files": [record]})

    assert verdict([0.1, 0.01], [0.05, 0.07]) == ["delta", "≤ 0.075", 0.07, "yes"]
    assert verdict([0.05, 0.08]) == ["delta", "≤ 0.075", 0.08, "**no**"]
    assert verdict([0.1, 0.01]) == ["delta", "≤ 0.075", None, "unmeasured"]


def test_a_method_above_ours_meets_no_target_however_certain() -> None:
    def row(difference: float, p: float) -> dict[str, Any]:
        return {"method": "dpo", "test, less allo": {"value": difference}, "test, p": p}

    measure = targets.largest_p("test")
    assert measure([row(-0.05, 0.002), row(-0.01, 0.03)]) == 0.03
    assert measure([row(-0.05, 0.002), row(0.05, 0.001)]) == 1.0


def test_several_commits_are_all_named(project: Path) -> None:
    put(project, "a.json", commit="0123456789abcdef fedcba9876543210")
    tables.main([], root=project)
    assert "commits 0123456, fedcba9, 2 cores" in (project / "README.md").read_text()


def publish(project: Path, **changes: object) -> None:
    content = {
        "schema": 1,
        "table": "published-demo",
        "source": "a paper",
        "note": "One run.",
        "columns": ["method", "accuracy"],
        "rows": [["DPO", 75.07], ["ALLO", 75.9]],
    }
    (project / "benchmarks" / "published").mkdir(exist_ok=True)
    (project / "benchmarks" / "published" / "demo.json").write_text(json.dumps(content | changes))


def test_a_published_table_is_shown_as_printed_and_says_whose_it_is(project: Path) -> None:
    publish(project)
    (project / "README.md").write_text(DOCUMENT.replace("table:demo", "table:published-demo"))
    assert tables.main([], root=project) == 0
    text = (project / "README.md").read_text()
    assert "| DPO | 75.07 |" in text and "| ALLO | 75.90 |" in text
    assert "Published, not measured here: a paper. One run." in text


@pytest.mark.invariant("Published and measured figures do not mix.")
def test_published_and_measured_figures_do_not_mix(project: Path) -> None:
    publish(project, table="demo")
    assert tables.main([], root=project) == 2
    publish(project)
    put(project, "a.json", table="published-demo")
    assert tables.main([], root=project) == 2


def test_a_plot_is_shown_once_it_is_drawn(project: Path) -> None:
    place = "<!-- plot:sweep -->\n<!-- /plot:sweep -->\n"
    document = project / "benchmarks" / "RESULTS.md"
    document.write_text(place)
    tables.main([], root=project)
    assert "No plot has been drawn yet." in document.read_text()
    (project / "docs" / "plots").mkdir(parents=True)
    (project / "docs" / "plots" / "sweep.svg").write_text("<svg/>")
    assert tables.main(["--check"], root=project) == 1
    tables.main([], root=project)
    assert "![sweep](../docs/plots/sweep.svg)" in document.read_text()
    assert tables.main(["--check"], root=project) == 0


@pytest.mark.parametrize("name", ["questions", "mathematics", "instructions"])
def test_published_means_are_those_of_their_row(name: str) -> None:
    """A check on typing: each row's last figure is the mean of the others, to its last digit."""
    table = json.loads((ROOT / "benchmarks" / "published" / f"{name}.json").read_text())
    digits = max(len(str(cell).partition(".")[2]) for row in table["rows"] for cell in row[1:])
    for _, *figures, mean in table["rows"]:
        assert sum(figures) / len(figures) == pytest.approx(mean, abs=10**-digits)
