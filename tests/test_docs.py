"""The documents name tests and code: each name leads somewhere."""

import pkgutil
import re
from pathlib import Path

import pytest

import render_invariants

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]*test_\w+\.py)(?:::(test_\w+))?", document.read_text()):
        source = (ROOT / file).read_text()
        assert f"def {name}(" in source if name else source, f"{document.name}: {file}::{name}"


def test_every_function_of_the_methods_table_exists() -> None:
    names = re.findall(r"`(allo(?:\.\w+)+)`", (ROOT / "docs/method.md").read_text())
    assert names
    for name in names:
        assert pkgutil.resolve_name(name), name


def test_the_page_of_invariants_is_what_the_tests_say() -> None:
    assert render_invariants.PAGE.read_text(encoding="utf-8") == render_invariants.page()


def test_a_marker_on_a_test_and_on_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_invariants, "ROOT", tmp_path)
    (tmp_path / "test_x.py").write_text(
        'pytestmark = pytest.mark.invariant("whole")\n@pytest.mark.invariant("one")\ndef test_y(): ...\ndef test_z(): ...\n'
    )
    assert list(render_invariants.marked(tmp_path / "test_x.py")) == [
        ("whole", "test_x.py"),
        ("one", "test_x.py::test_y"),
    ]


def test_every_room_stands_in_the_architecture() -> None:
    rooms = {
        path.name
        for path in (ROOT / "src" / "allo").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    named = set(re.findall(r"`(\w+)/", (ROOT / "ARCHITECTURE.md").read_text()))
    assert rooms <= named, rooms - named


def test_every_file_that_the_architecture_names_exists() -> None:
    names = re.findall(r"`((?:\w+/)+\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())
    assert names
    for name in names:
        assert (ROOT / name).is_file() or (ROOT / "src" / "allo" / name).is_file(), name
