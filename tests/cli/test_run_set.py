"""`allo run RECIPE --set` says which command goes on with the settings that it has just used."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import allo.cli
from allo.cli import app
from allo.files.artifacts import RunFolder
from allo.recipe import Recipe, load_recipe, save_recipe
from start_rows import rows, write
from tiny_run import LAB


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in the folder of its run, whose stages only keep their settings."""

    def keep(read: Recipe, **_: Any) -> RunFolder:
        run = RunFolder(read.run_folder)
        (run.path / "recipe.yaml").write_text(save_recipe(read))
        return run

    monkeypatch.setattr(allo.cli, "run_all", keep)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", rows("pairs"))
    path = Path("my runs/mine/align.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(f"name: mine\nout: my runs\nmodel: {LAB}\ndata: {{pairs: pairs.jsonl}}\n")
    return path


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["run", *words, "--until", "sft"], catch_exceptions=False)
    return " ".join(done.output.split())


def test_the_command_that_goes_on_has_the_settings_of_this_run(recipe: Path) -> None:
    said = run(str(recipe), "--set", "improve.density=0.2")
    assert f"{recipe} is as it was" in said
    command = shlex.split(said.partition("Go on with those of this run: ")[2])
    assert command[:2] == ["allo", "run"]
    assert load_recipe(command[2]) == load_recipe(recipe, ["improve.density=0.2"])
    assert "is as it was" not in run(command[2])  # it names itself


def test_without_other_settings_nothing_is_said(recipe: Path) -> None:
    assert "as it was" not in run(str(recipe))
    same = load_recipe(recipe).improve
    assert same is not None
    assert "as it was" not in run(str(recipe), "--set", f"improve.density={same.density}")
    assert "as it was" not in run(str(recipe.parent / "recipe.yaml"), "--set", "improve.density=0.3")
