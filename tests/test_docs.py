"""The documents name tests and code: each name leads somewhere."""

import importlib
import re
from pathlib import Path

import pytest

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
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_invariant_names_its_test() -> None:
    invariants = (ROOT / "ARCHITECTURE.md").read_text().split("## Invariants")[1].split("\n## ")[0]
    bullets = re.split(r"\n- ", invariants)[1:]
    assert bullets
    for bullet in bullets:
        assert re.search(r"tests/[\w/]*test_\w+\.py(::test_\w+)?", bullet), bullet
