"""The house: which room may import which, and what is nowhere in it.

The table below is the architecture; ARCHITECTURE.md explains it. A room is a module or a package directly below
`allo`. Every room may import only rooms that stand above it.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "allo"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60  # docstring aside


@dataclass(frozen=True)
class Room:
    """`rooms`: what it may import of allo. `packages`: heavy packages it may import.
    `lazy`: heavy packages that it may import inside functions (or for type checkers) only."""

    rooms: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    lazy: set[str] = field(default_factory=set)


TENSORS = {"torch", "safetensors", "numpy"}
HUGGING_FACE = {
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "tokenizers",
    "peft",
    "trl",
    "gguf",
    "vllm",
    "lm_eval",
}
HEAVY = TENSORS | HUGGING_FACE | {"pyarrow", "scipy", "pandas", "openai"}
LEAVES = {"errors", "console", "ranks", "recipe", "files", "tasks"}
HOUSE = {
    "errors": Room(),
    "lazy": Room(),
    "console": Room({"errors"}),
    # The processes of one command; torch is loaded where there are several.
    "ranks": Room({"errors", "console"}, lazy={"torch"}),
    "recipe": Room({"errors"}),
    # `provenance` asks torch about the machine where it is loaded already, and loads it for nothing.
    "files": Room({"errors", "console", "ranks", "recipe"}, lazy={"datasets", "huggingface_hub", "pyarrow"}),
    "stats": Room(packages={"numpy", "scipy"}),
    "tasks": Room({"errors", "recipe", "files"}),
    "losses": Room({"errors", "lazy"}, {"torch"}),
    # Which weights, and weights on disk: no model is built; transformers says where it stores a model's weights.
    "weights": Room(
        {"errors", "lazy", "console", "ranks", "recipe", "files"}, {*TENSORS, "scipy"}, lazy={"transformers"}
    ),
    "delta": Room(
        {"errors", "console", "files", "weights"},
        TENSORS,
        lazy={"huggingface_hub"},  # only to download and upload
    ),
    # From here on transformers is known.
    "models": Room({*LEAVES, "losses", "weights"}, HEAVY - {"trl", "lm_eval"}),
    "sampling": Room({*LEAVES, "weights", "models"}, HEAVY - {"trl", "lm_eval"}),
    "training": Room({*LEAVES, "losses", "weights", "delta", "models"}, HEAVY - {"trl", "lm_eval"}),
    "tokens": Room({*LEAVES, "lazy", "weights", "models", "training"}, HEAVY - {"trl", "lm_eval"}),
    # The only room that knows trl: see test_only_a_recipe_that_asks_loads_trl.
    "baselines": Room(
        {*LEAVES, "weights", "models", "sampling", "training"},
        {"torch", "transformers", "datasets", "peft", "trl"},
    ),
    "report": Room({*LEAVES, "stats", "weights"}, lazy={"pyarrow", "numpy"}),
    "stages": Room(
        {
            *LEAVES,
            *("stats", "losses", "weights", "delta", "models", "sampling", "training", "tokens"),
            *("baselines", "report"),
        },
        HEAVY - HUGGING_FACE,
    ),
    # It imports the stages by their names, when they run.
    "pipeline": Room(LEAVES, lazy={"torch"}),
    # Trains a model that rewrites wrong completions; the scorer that uses it is in `tokens`.
    "rewriter": Room({*LEAVES, "weights", "models", "sampling", "training", "tokens", "stages"}),
    # Judges of answers; it reads finished runs, and runs no model.
    "winrate": Room({*LEAVES, "stats", "sampling"}, {"numpy"}),
    # Standard tasks through lm-eval, which no other room knows.
    "harness": Room(
        {*LEAVES, "weights", "delta", "models", "training", "report", "stages", "pipeline"},
        {"torch"},
        lazy={"lm_eval", "datasets"},
    ),
    # A recipe's memory and the tokens that it trains on, before it runs.
    "plan": Room(
        {*LEAVES, "weights", "models", "training", "tokens", "stages", "pipeline"},
        {"torch"},
        lazy={"pyarrow", "transformers"},
    ),
    # Many runs from one recipe.
    "compare": Room({*LEAVES, "stats", "report", "pipeline"}, {"numpy", "scipy"}, lazy={"torch"}),
    "cli": Room(
        {
            *LEAVES,
            *("weights", "delta", "models", "sampling", "stages", "pipeline"),
            *("rewriter", "winrate", "harness", "plan", "compare"),
        }
    ),
    "__main__": Room({"cli"}),
    # The public names, imported when first used.
    "__init__": Room({"lazy", "recipe", "weights", "delta", "models", "training", "tokens", "pipeline"}),
}

# Nothing here may run code that comes from a file.
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "torch.save"}
PICKLING_NAMES = {"load", "save"}  # their last words, looked at first


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    lazy: bool


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, lazy: bool = False) -> Iterator[Import]:
    """Every import; `lazy` inside a function or under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "allo":
                yield from (
                    Import(f"allo.{a.name}", node.lineno, lazy) for a in node.names if a.name != "__version__"
                )
            else:
                yield Import(str(node.module), node.lineno, lazy)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            )
            yield from imports(node, lazy=lazy or later)


def forbidden_imports(source: str, *, name: str) -> list[str]:
    """Return the imports of a file of room `name` that it may not have."""
    room = HOUSE[name]
    found = []
    for imported in imports(ast.parse(source)):
        top, *rest = imported.module.split(".")
        if top == "allo":
            allowed = bool(rest) and (rest[0] == name or rest[0] in room.rooms)
        else:
            allowed = top not in HEAVY or top in room.packages or (imported.lazy and top in room.lazy)
        if not allowed:
            found.append(f"line {imported.line}: {imported.module}")
    return found


def pickling(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [f"line {i.line}: {i.module}" for i in imports(tree) if i.module.split(".")[0] in PICKLES]
    found += [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in PICKLING_NAMES
        and ast.unparse(node) in PICKLING_CALLS
    ]
    return found


def long_functions(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = ast.get_docstring(node) is not None
            documented = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - documented
            if length > MAX_FUNCTION_LINES:
                found.append(f"{node.name}: {length} lines")
    return found


def python_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def in_files(find: Callable[[Path, str], list[str]]) -> dict[str, list[str]]:
    """Return the findings of `find(path, source)` by file; files without any are left out."""
    found = {relative(path): find(path, path.read_text(encoding="utf-8")) for path in python_files()}
    assert len(found) > 100
    return {path: findings for path, findings in found.items() if findings}


def test_every_room_is_in_the_house_and_imports_only_rooms_above_it() -> None:
    assert {room_of(path) for path in python_files()} <= set(HOUSE), "a new room: give it a place in HOUSE"
    above: set[str] = set()
    for name, room in HOUSE.items():
        assert room.rooms <= above, f"{name} may import {room.rooms - above}, which stand below it"
        above.add(name)


@pytest.mark.invariant("Imports run one way: cli, pipeline, stages, hf, core.")
def test_imports_run_one_way() -> None:
    assert in_files(lambda path, source: forbidden_imports(source, name=room_of(path))) == {}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("weights", "import transformers"),
        ("losses", "from allo.recipe import Recipe"),
        ("weights", "def f():\n    from allo.models import load"),
        ("models", "from allo import stages"),
        ("stages", "from transformers import Trainer"),
        ("recipe", "import torch.nn as nn"),
        ("files", "from datasets import load_dataset"),
        (
            "delta",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from accelerate import Accelerator",
        ),
        ("cli", "def f():\n    import torch"),
        ("stages", "from allo import ParamMask"),
    ],
)
def test_a_forbidden_import_is_found(name: str, source: str) -> None:
    assert len(forbidden_imports(source, name=name)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("losses", "import torch"),
        ("files", "def f():\n    from datasets import load_dataset"),
        ("stages", "from allo.models.load import load_model"),
        ("cli", "from allo import __version__"),
    ],
)
def test_an_allowed_import_is_not_reported(name: str, source: str) -> None:
    assert forbidden_imports(source, name=name) == []


@pytest.mark.invariant("Nothing is pickled, by us or by the trainer's checkpoints.")
def test_nothing_is_pickled() -> None:
    assert in_files(lambda _, source: pickling(source)) == {}


@pytest.mark.parametrize(
    "source", ["import pickle", "def f():\n    from dill import loads", "torch.save(x, 'f')"]
)
def test_pickling_is_found(source: str) -> None:
    assert len(pickling(source)) == 1


def test_files_and_functions_stay_short() -> None:
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {path: length for path, length in lines.items() if length > MAX_FILE_LINES} == {}
    assert in_files(lambda _, source: long_functions(source)) == {}


def test_a_long_function_is_found_and_its_docstring_is_free() -> None:
    lines = "    x = 1\n" * (MAX_FUNCTION_LINES - 1)
    assert long_functions(f"def f():\n{lines}") == []
    assert long_functions(f"def f():\n    '''One\n    two.'''\n{lines}") == []
    assert long_functions(f"def f():\n    x = 0\n{lines}") == [f"f: {MAX_FUNCTION_LINES + 1} lines"]


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a new interpreter has loaded after the statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(run.stdout.splitlines()[-1].split())


HELP = """
sys.argv = ["allo", "--help"]
from allo.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.invariant("`import allo`, `allo --help` and the recipe load no torch.")
@pytest.mark.parametrize("statement", ["import allo", HELP], ids=["import allo", "allo --help"])
def test_the_front_door_loads_nothing_heavy(statement: str) -> None:
    assert not loaded_after(statement) & HEAVY


def modules_of(*rooms: str) -> str:
    """The statement that imports every module of these rooms."""
    paths = [path for path in python_files() if room_of(path) in rooms]
    names = [".".join(("allo", *path.relative_to(SOURCE).with_suffix("").parts)) for path in paths]
    return "import " + ", ".join(name.removesuffix(".__init__") for name in names)


def test_leaves_load_nothing_heavy() -> None:
    assert not loaded_after(modules_of(*LEAVES, "report", "pipeline", "cli")) & HEAVY


def test_weights_and_losses_load_no_transformers() -> None:
    assert not loaded_after(modules_of("losses", "weights", "delta", "stats")) & HUGGING_FACE


@pytest.mark.invariant("Only a recipe that asks loads TRL.")
def test_only_a_recipe_that_asks_loads_trl() -> None:
    """transformers itself loads peft where it is installed."""
    assert "trl" not in loaded_after(modules_of("training", "stages", "pipeline"))


def test_public_names_load_when_first_used() -> None:
    import allo

    assert set(allo.__all__) <= set(dir(allo))
    for name in allo.__all__:
        assert getattr(allo, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = allo.nothing_of_this_name
