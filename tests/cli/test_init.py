"""`allo init` and `recipes/start`: one commented text a kind of rows, written with the user's model and data in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from allo.cli import app
from allo.errors import UserError
from allo.files.artifacts import read_json
from allo.pipeline import run_all
from allo.recipe import load_recipe, read_recipe
from allo.recipe.own_code import load_function
from allo.recipe.starting import START_KINDS, reward_text, run_name, start_text
from allo.recipe.text import parse, with_values
from allo.stages.report import tables_of_run
from start_rows import rows, write
from tiny_run import LAB

SHIPPED = Path(__file__).resolve().parent.parent.parent / "recipes" / "start"
ROWS = {"pairs": "pairs", "feedback": "feedback", "problems": "problems", "reward": "prompts"}
# Few rows for a model of 0.6 million weights.
SMALL = {
    "device": "cpu",
    "dtype": "float32",
    "chat": False,
    "max_length": 128,
    "out": "runs",
    **{f"{stage}.training.max_steps": 2 for stage in ("locate", "forget", "improve")},
    **{f"{stage}.training.learning_rate": 1e-4 for stage in ("locate", "forget", "improve")},
}
SAMPLED = {"sample.num_generations": 6, "sample.max_new_tokens": 40, "evaluate.num_generations": 1}


def init(*words: str) -> str:
    return CliRunner().invoke(app, ["init", *words], catch_exceptions=False).output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", START_KINDS)
def test_the_shipped_recipes_are_those_that_init_writes(kind: Any) -> None:
    assert (SHIPPED / f"{kind}.yaml").read_text() == start_text(kind)
    assert {path.name for path in SHIPPED.iterdir()} == {
        *(f"{each}.yaml" for each in START_KINDS),
        "reward.py",
    }
    assert (SHIPPED / "reward.py").read_text() == reward_text()


@pytest.mark.parametrize("kind", START_KINDS)
def test_init_writes_a_commented_recipe_with_the_model_and_the_data(kind: Any, folder: Path) -> None:
    said = init(kind, "--model", "my/model", "--data", "my rows.jsonl", "--out", "sub/mine.yaml")
    text = (folder / "sub/mine.yaml").read_text()
    read = load_recipe("sub/mine.yaml")
    assert (read.name, read.model) == ("mine", "my/model")
    assert "my rows.jsonl" in map(str, (read.data.pairs, read.data.feedback, read.data.file))
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments == [line for line in start_text(kind).splitlines() if line.startswith("#")]
    assert "allo check sub/mine.yaml" in said
    before = text
    with pytest.raises(UserError, match=r"sub/mine.yaml: is there already"):
        init(kind, "--out", "sub/mine.yaml")
    assert (folder / "sub/mine.yaml").read_text() == before


def test_a_rewards_function_is_written_beside_its_recipe_and_rewards_texts_and_messages(folder: Path) -> None:
    init("reward", "--out", "mine.yaml")
    (name,) = load_recipe("mine.yaml").judge.function
    function = load_function(name, key="judge.function")
    chat = [{"role": "assistant", "content": "four"}]
    assert function(prompts=["a", "b"], completions=["four", chat], answer=["4", "4"]) == [-4.0, -4.0]
    (folder / "other.py").write_text("mine")
    with pytest.raises(UserError, match=r"other.py: is there already"):
        init("reward", "--out", "other.yaml")
    assert not (folder / "other.yaml").exists() and (folder / "other.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "given"), [("pairs", "feedback"), ("problems", "prompts"), ("feedback", "pairs")]
)
def test_rows_of_another_kind_are_refused_with_the_command_for_them(
    kind: str, given: str, folder: Path
) -> None:
    write(folder / "rows.jsonl", rows(given))
    fitting = next(name for name, one in ROWS.items() if one == given)
    with pytest.raises(UserError, match=rf"rows.jsonl: has rows of the kind {given}: `allo init {fitting}`"):
        init(kind, "--data", "rows.jsonl")
    assert not (folder / f"{kind}.yaml").exists()


def test_a_file_that_is_no_recipe_is_not_written(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--out recipe.json: .*pairs.yaml"):
        init("pairs", "--out", "recipe.json")


@pytest.mark.slow
@pytest.mark.parametrize("kind", START_KINDS)
def test_a_start_recipe_runs_whole(kind: Any, folder: Path) -> None:
    write(folder / "rows.jsonl", rows(ROWS[kind], 15))
    init(kind, "--model", str(LAB), "--data", "rows.jsonl", "--out", "mine.yaml")
    values = SMALL if kind in ("pairs", "feedback") else SMALL | SAMPLED
    run = run_all(load_recipe("mine.yaml", [f"{key}={json.dumps(value)}" for key, value in values.items()]))
    stages = read_json(run.manifest)["stages"]
    assert stages["improve"]["counts"]["changed_weights"] > 0 and stages["forget"]["counts"]["rows"] > 0
    assert (run.model / "model.safetensors").is_file()
    tables = list(tables_of_run(run.path))
    assert tables and all("aligned" in lines[0] or lines[2][0] == "After" for _, lines, _ in tables), (
        "what is held out"
    )
    assert all(re.match(r"\d+ (good|pairs|prompts)|Mean log", remark) for *_, remark in tables), (
        "how many rows"
    )


def test_other_values_in_a_text_leave_its_comments_and_its_other_lines() -> None:
    text = "# first\nname: a  # here\n\n# of data\ndata: {pairs: p.jsonl}\n# last\n"
    changed = with_values(
        text, {"data.limit": 3, "improve.training.max_steps": 2, "seed": 1}, reasons={"data": ["few"]}
    )
    assert changed == (
        "# first\nname: a  # here\n\n# of data\n# few\ndata: {pairs: p.jsonl, limit: 3}\n# last\n"
        "improve:\n  training: {max_steps: 2}\nseed: 1\n"
    )
    assert with_values(text, {}) == text


@pytest.mark.parametrize(
    "value", ["no", "1e5", "a: b", "# x", "~/m odel", "", "2024-01-01", 5e-6, None, [], {"a": 1}]
)
def test_any_value_is_read_back(value: Any) -> None:
    text = with_values(start_text("pairs"), {"model": value, "improve.anything": value})
    fields, _ = parse(text, where=str)
    assert fields["model"] == fields["improve"]["anything"] == value
    assert fields["improve"]["density"] == 0.1


@pytest.mark.parametrize("text", ["a b", "-x", "..", "ünï", "a/b", "x" * 300, "SmolLM2-135M", "v1.5"])
def test_every_text_has_a_name_that_a_run_can_have(text: str) -> None:
    recipe = read_recipe(with_values(start_text("pairs"), {"name": run_name(text)}), path=Path("x.yaml"))
    assert recipe.name == run_name(text)
