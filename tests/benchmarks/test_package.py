"""Benchmarks and experiments are packages: imported by full names, run as modules, and documented so."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmarks", "experiments")
FOLDERS = (*PACKAGES, "examples", "scripts", "tests")
SCRIPTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in SCRIPTS
    if path.relative_to(ROOT).parts[0] in PACKAGES and path.name != "__init__.py"
}
ALLOWED = {
    # It runs the code of two checkouts in turn, with this environment's packages.
    "scripts/same_artifacts.py",
    # They import modules that they write into a temporary folder, as users have modules beside a recipe.
    "tests/recipe/test_choice_tables.py",
    "tests/stages/test_toy_entries.py",
    "tests/test_extending.py",
    "tests/delta/test_delta_serving.py",  # runs a script that calls the command
    "benchmarks/ranks/kills.py",  # its processes train the model and recipe of the tests
    "tests/test_wheel.py",  # runs the package from the unpacked wheel
    "tests/cli/test_environment.py",  # puts a torch that cannot be imported before the real one
    "tests/benchmarks/test_package.py",  # it looks for these words
}
OLD = r"python\S* +(benchmarks|experiments)/"
COMMANDS = {name for name, path in MODULES.items() if '__name__ == "__main__"' in path.read_text()}


def edits_of_the_path(source: str) -> list[int]:
    """Return the lines that use `sys.path` or pytest's way to extend it, or name PYTHONPATH."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "site.addsitedir"))
        or (isinstance(node, ast.Attribute) and node.attr == "syspath_prepend")
        or (isinstance(node, ast.Constant) and node.value == "PYTHONPATH")
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.path.insert(0, 'x')",
        "import sys\nsys.path += ['x']",
        "import sys\nsys.path[:0] = ['x']",
        "def test(monkeypatch):\n    monkeypatch.syspath_prepend('x')",
        "import os\nos.environ['PYTHONPATH'] = 'x'",
    ],
)
def test_every_way_to_edit_the_path_is_seen(source: str) -> None:
    assert edits_of_the_path(source) == [2]


def test_no_script_edits_the_path() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in SCRIPTS if edits_of_the_path(path.read_text())}
    assert found == ALLOWED


def test_modules_import_each_other_by_full_names_that_exist() -> None:
    modules = {name.rpartition(".")[2] for name in MODULES}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module not in modules, f"{name}: {node.module} without its package"
                parts = node.module.split(".")
                if parts[0] in PACKAGES:
                    names = {f"{node.module}.{alias.name}" for alias in node.names}
                    assert node.module in MODULES or names <= set(MODULES), f"{name}: {node.module}"


def test_documents_run_modules_that_exist() -> None:
    """Records keep the command that made them; so do the entries of the log of experiments."""
    documents = [
        *ROOT.glob("*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("experiments/*.md"),
        *ROOT.glob("docs/**/*.md"),
    ]
    named: set[str] = set()
    for path in [ROOT / "Makefile", *ROOT.glob("recipes/*.yaml"), *documents, *MODULES.values()]:
        for line in path.read_text().split("\n"):
            if not line.startswith("<sub>"):
                named |= set(re.findall(r"-m ((?:benchmarks|experiments)[.\w]+)", line))
                assert path.name == "experiments.md" or not re.search(OLD, line), f"{path}: {line}"
    assert {name for name in named if "MODULE" not in name} <= COMMANDS and len(named) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMMANDS - {"benchmarks.speed.one", "benchmarks.ranks.forked"}))
def test_every_module_starts(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
