"""The public surface: these names and no others, which is all that the documents and examples import."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_architecture import HEAVY, loaded_after

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "SKILL.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
]
PUBLIC = {
    "allo": {
        *(
            "FeedbackTrainer",
            "ForgetTrainer",
            "ImproveTrainer",
            "ParamMask",
            "SelectedWeights",
            "__version__",
        ),
        *("apply_delta", "load_recipe", "load_shards", "locate", "run", "score"),
    },
    "allo.losses": {
        *("AnswerSums", "LossFunction", "PairLogps", "PairSums", "TokenLogps"),
        *("feedback_loss", "forgetting_loss", "pair_loss"),
    },
    "allo.tokens": {"Context", "Scored", "ScoringFunction", "confidence", "edit"},
    "allo.weights": {"Scoring", "criterion"},
}


def python_of(document: Path) -> list[str]:
    """The Python of a document: the file itself, or the fenced blocks of a page."""
    text = document.read_text(encoding="utf-8")
    return [text] if document.suffix == ".py" else re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def names_imported(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that is imported of allo."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "allo":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("allo."))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "allo":
            yield "allo", node.attr


def private(source: str) -> list[tuple[str, str]]:
    return [
        (module, name)
        for module, name in names_imported(source)
        if name not in PUBLIC.get(module, set()) | {"__file__"}
    ]


@pytest.mark.parametrize("room", PUBLIC)
def test_the_list_is_what_the_room_exports_and_each_name_loads(room: str) -> None:
    module = importlib.import_module(room)
    assert set(module.__all__) == PUBLIC[room]
    for name in PUBLIC[room]:
        assert getattr(module, name) is not None
    assert PUBLIC[room] <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'nothing_of_this_name'"):
        _ = module.nothing_of_this_name


def test_rooms_load_nothing_heavy_before_a_name_is_used() -> None:
    assert not loaded_after("import " + ", ".join(PUBLIC)) & HEAVY


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_import_public_names_alone(document: Path) -> None:
    assert [found for source in python_of(document) for found in private(source)] == []


def test_the_documents_do_import_something() -> None:
    found = {name for path in DOCUMENTS for source in python_of(path) for name in names_imported(source)}
    assert len(found) > 8


@pytest.mark.parametrize(
    "source",
    [
        "from allo.losses.pair_losses import PairSums",
        "import allo.pipeline",
        "def f():\n    from allo import pipeline",
        "import allo\nallo.pipeline.run_all(recipe)",
    ],
)
def test_an_import_from_inside_is_found(source: str) -> None:
    assert private(source)


def test_a_recipe_is_loaded_from_a_path_or_its_text() -> None:
    import allo

    path = ROOT / "recipes" / "lab.yaml"
    assert allo.load_recipe(str(path)) == allo.load_recipe(path)


def test_a_recipe_runs_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import allo
    import allo.pipeline as pipeline

    seen = []

    def opened(recipe: object) -> None:
        seen.append(recipe)
        raise InterruptedError

    monkeypatch.setattr(pipeline, "_opened", opened)
    path = ROOT / "recipes" / "lab.yaml"
    for given in (path, str(path), allo.load_recipe(path)):
        with pytest.raises(InterruptedError):
            allo.run(given)
    assert seen == [allo.load_recipe(path)] * 3
