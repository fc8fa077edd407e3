"""The documents' tables come from records, and stale ones are found."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import targets

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_tables", ROOT / "scripts" / "render_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(DOCUMENT)
    return tmp_path


def put(project: Path, name: str, **changes: object) -> None:
    (project / "benchmarks" / "results" / name).write_text(json.dumps(RECORD | changes))


def test_tables_of_this_project_are_up_to_date(tables: ModuleType) -> None:
    assert tables.main(["--check"]) == 0, "a table is stale: run `make tables`"


def test_a_table_is_filled_from_its_record_and_names_its_origin(tables: ModuleType, project: Path) -> None:
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


def test_records_of_one_table_follow_each_other_by_file_name(tables: ModuleType, project: Path) -> None:
    put(project, "b.json", rows=[["second", 2, 2]])
    put(project, "a.json", rows=[["first", 1, 1]])
    tables.main([], root=project)
    text = (project / "README.md").read_text()
    assert text.index("first") < text.index("second")


def test_a_table_without_a_record_says_so(tables: ModuleType, project: Path) -> None:
    tables.main([], root=project)
    assert "No result has been recorded yet." in (project / "README.md").read_text()


@pytest.mark.parametrize(
    "changes", [{"dirty": True}, {"schema": 2}, {"rows": [["a cell too few"]]}, {"unknown": 1}], ids=str
)
def test_bad_records_are_refused(tables: ModuleType, project: Path, changes: dict[str, object]) -> None:
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
