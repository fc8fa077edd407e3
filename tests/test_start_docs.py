"""docs/start.md is executed: its commands run in their order, with the laboratory's model in the named model's place."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from allo.cli import app
from allo.recipe import load_recipe
from start_rows import rows, write
from tiny_run import LAB

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
# The laboratory's model stands for another, whose template and positions it does not have.
SHORT = [
    *("chat=false", "max_length=128", "device=cpu"),
    *(f"{stage}.training.max_steps=2" for stage in ("locate", "forget", "improve")),
]
RUN = "runs/pairs-SmolLM2-135M-Instruct"


def test_the_table_has_each_kind_of_rows() -> None:
    for column in ("`chosen`", "`completions`", "`label`", "`answer`", "`--reward FILE.py:NAME`"):
        assert any(column in line for line in PAGE.splitlines() if line.startswith("|")), column


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "HuggingFaceTB").mkdir()
    (tmp_path / "HuggingFaceTB/SmolLM2-135M-Instruct").symlink_to(LAB)
    for kind in ("pairs", "prompts"):
        write(tmp_path / f"{kind}.jsonl", rows(kind))
    for program, *words in COMMANDS:
        assert program == "allo"
        more = SHORT if words[0] in ("align", "run", "check", "plan") and "--size" not in words else []
        sizes = ["100M" if word == "8B" else word for word in words]
        given = [*sizes, *(word for each in more for word in ("--set", each))]
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0 and done.exception is None, (words, done.exception)
        if "--dry-run" in words:
            assert not (tmp_path / "runs").exists()
    aligned, changed = load_recipe(f"{RUN}/align.yaml"), load_recipe(f"{RUN}/recipe.yaml")
    assert aligned.improve and changed.improve
    assert (aligned.improve.density, changed.improve.density) == (0.1, 0.2)
    assert (tmp_path / RUN / "model/model.safetensors").is_file()
    assert load_recipe("mine.yaml").model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (tmp_path / "reward.py").is_file()


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", PAGE))
def test_links_lead_to_files(target: str) -> None:
    assert (ROOT / "docs" / target).exists()
