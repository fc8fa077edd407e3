"""The first pages are executed: their commands run in their order, with the laboratory's model in the named model's place."""

import itertools
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from allo.cli import app
from allo.recipe import load_recipe
from pages import ROOT, Block, blocks
from start_rows import rows, write
from tiny_run import LAB

# In this order, each list in a folder of its own: what a page makes, the next may use.
PAGES = (
    ("docs/start.md", "docs/checking.md", "docs/settings.md", "docs/report.md"),
    ("SKILL.md",),
    ("README.md",),
)
START = (ROOT / "docs/start.md").read_text(encoding="utf-8")
# The laboratory's model stands for another, whose template and positions it does not have.
SHORT = [
    *("chat=false", "max_length=128", "device=cpu"),
    *("sample.num_generations=2", "sample.max_new_tokens=24", "evaluate.num_generations=1"),
    *(f"{stage}.training.max_steps=2" for stage in ("locate", "forget", "improve")),
]
SHORT_COMPARISON = [
    *("data.limit=8", "sample.num_generations=4", "evaluate.num_generations=1", "evaluate.kl.limit=2"),
    *(f"evaluate.sets.{name}.limit=2" for name in ("test", "reworded", "unseen")),
    *("compare.seeds=[0]", "compare.tuning_seeds=[1]", "compare.rates=[1.0]", "compare.extra_trials=0"),
    *("compare.validation.limit=2", "compare.beyond=0"),
]
RUN = "runs/pairs-SmolLM2-135M-Instruct"
REWARD = "def brief(completions, **columns):\n    return [-float(len(text)) for text in completions]\n"


def shortened(words: list[str]) -> list[str]:
    """The command with settings for which it takes seconds."""
    if words[0] == "compare":
        more = SHORT_COMPARISON
    elif words[0] in ("align", "run", "check", "plan") and "--size" not in words:
        given = {value.partition("=")[0] for option, value in itertools.pairwise(words) if option == "--set"}
        more = [each for each in SHORT if each.partition("=")[0] not in given]
    else:
        more = []
    sizes = ["100M" if word == "8B" else word for word in words]
    return [*sizes, *(word for each in more for word in ("--set", each))]


def run_block(block: Block) -> None:
    """Run a block as a reader would: a shell's commands, a script, or a recipe that is loaded."""
    if block.language == "bash":
        for program, *words in block.commands:
            if program == "allo":
                before = {*Path().rglob("*")}
                done = CliRunner().invoke(app, shortened(words))
                assert done.exit_code == 0 and done.exception is None, (block.page, words, done.exception)
                assert "--dry-run" not in words or before == {*Path().rglob("*")}, words
            else:
                assert program == "make", words  # its targets are looked up by test_pages.py
    elif block.language == "yaml":
        Path(block.file or "recipe.yaml").write_text(block.text, encoding="utf-8")
        load_recipe(block.file or "recipe.yaml")
    elif block.page != "README.md":  # the README's is run by test_readme.py
        exec(compile("\n" * block.line + block.text, block.page, "exec"), {})


def test_the_table_has_each_kind_of_rows() -> None:
    for column in ("`chosen`", "`completions`", "`label`", "`answer`", "`--reward FILE.py:NAME`"):
        assert any(column in line for line in START.splitlines() if line.startswith("|")), column


def prepared(folder: Path) -> None:
    """Put into a new folder what the pages take for granted: a model, rows, a reward; and go there."""
    (folder / "HuggingFaceTB").mkdir(parents=True)
    (folder / "HuggingFaceTB/SmolLM2-135M-Instruct").symlink_to(LAB)
    for name in ("recipes", "src"):
        (folder / name).symlink_to(ROOT / name)
    for kind in ("pairs", "prompts", "feedback"):
        write(folder / f"{kind}.jsonl", rows(kind))
    (folder / "rewards.py").write_text(REWARD)
    os.chdir(folder)


@pytest.mark.slow
# The Trainer pins memory by default, and torch says so where there is no GPU to pin it for.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_pages_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide, skill, readme = (tmp_path / str(number) for number in range(3))
    for folder, pages in zip((guide, skill, readme), PAGES, strict=True):
        prepared(folder)
        if folder == readme:
            Path("runs").mkdir()
            Path("runs/mine").symlink_to(skill / "runs/mine")
            Path("runs/other").symlink_to(guide / "runs/wider")
        for page in pages:
            if page == "docs/checking.md":
                os.link("mine.yaml", "recipe.yaml")
            for block in blocks(page):
                if block.is_run:
                    run_block(block)
    aligned, changed = (load_recipe(guide / RUN / name) for name in ("align.yaml", "recipe.yaml"))
    assert aligned.improve and changed.improve
    assert (aligned.improve.anchor, changed.improve.anchor) == (0, 1)
    assert (guide / RUN / "model/model.safetensors").is_file()
    assert load_recipe(guide / "mine.yaml").model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (guide / "reward.py").is_file()
    assert "wider" in (guide / "runs/both/report.md").read_text(encoding="utf-8")
