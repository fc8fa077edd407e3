"""The commands of "Use this model" name the model that the delta belongs to."""

import json
from pathlib import Path

import pytest

from allo.report.page import render
from allo.report.read import view


def run_of(folder: Path, recipe: str, start: str | None) -> Path:
    models = {name: {"label": name, "sets": {}} for name in ("start", "aligned")}
    (folder / "07-improve/model").mkdir(parents=True)
    (folder / "08-eval.json").write_text(json.dumps({"schema": 1, "models": models}))
    (folder / "recipe.yaml").write_text(recipe)
    if start is not None:
        (folder / "00-sft").mkdir()
        (folder / "00-sft/start.json").write_text(json.dumps({"model": start, "hashes": {}}))
    return folder


@pytest.mark.parametrize(
    ("recipe", "start", "base"),
    [
        ("model: org/name", "/cache/snapshots/123", "org/name"),
        ("model: /models/me/models/mine", "/models/me/models/mine", "mine"),
        ("model: mine/m.gguf\nsft: null", "00-sft/model", "m.gguf"),
        ("model: /models/me/m.gguf", None, "m.gguf"),
        ("model: org/name\nsft: {sources: [{task: mine}]}", "00-sft/model", "00-sft/model"),
        ("model: m.gguf\nsft: {sources: [{task: mine}]}", "00-sft/model", "00-sft/model"),
        ("model: org/name", "00-sft/model", "00-sft/model"),  # stored in another dtype
        ("model: org/with space", None, "'org/with space'"),
        ("name: mine", None, "BASE"),  # a folder without its recipe
    ],
)
def test_the_base_is_named_where_it_is_known(
    tmp_path: Path, recipe: str, start: str | None, base: str
) -> None:
    run = run_of(tmp_path / "run", recipe, start)
    html, markdown = render([view(run)])
    command = f"allo delta apply {base} 07-improve/delta.safetensors OUT"
    assert f"`{command}`" in markdown
    assert "/models/me" not in markdown.split("Use this model")[1] and "BASE" not in html.replace(command, "")
