"""Every block of the documents is run by a test or says why not, and every command in them can be read."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

import pages
from allo.pipeline import NAMES
from allo.recipe import load_recipe, read_recipe
from allo.recipe.starting import start_text
from pages import ROOT, blocks, commands, parse

# The page, and the test that runs its blocks.
RUN_BY = {
    "README.md": "tests/test_first_pages.py",
    "SKILL.md": "tests/test_first_pages.py",
    "docs/checking.md": "tests/test_first_pages.py",
    "docs/data.md": "tests/test_data_docs.py",
    "docs/evaluating.md": "tests/harness/test_harness.py",
    "docs/extending.md": "tests/test_extending.py",
    "docs/judging.md": "tests/test_judging_docs.py",
    "docs/library.md": "tests/test_readme.py",
    "docs/masks-and-deltas.md": "tests/test_readme.py",
    "docs/migrating.md": "tests/test_migrating.py",
    "docs/report.md": "tests/test_first_pages.py",
    "docs/rewriter.md": "tests/test_rewriter_docs.py",
    "docs/runs.md": "tests/test_readme.py",
    "docs/sampling.md": "tests/test_pages.py",
    "docs/scaling.md": "tests/test_scaling.py",
    "docs/settings.md": "tests/test_first_pages.py",
    "docs/start.md": "tests/test_first_pages.py",
}
ALL = [(page, words) for page in pages.pages() for words in commands(page)]


def test_every_page_with_blocks_to_run_names_the_test_that_runs_them() -> None:
    to_run = {page for page in pages.pages() if any(block.is_run for block in blocks(page))}
    assert to_run == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), f"{test} does not read {page}"


def test_every_fence_is_a_block() -> None:
    for page in pages.pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.count("```") == 2 * len(pages.FENCE.findall(text)), page


def test_a_block_that_is_not_run_says_so_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "*Not run by our tests: it\nneeds a GPU.*\n\n```bash\nvllm serve x  # here\n```\n\n```bash\nallo env | less\n```\n"
    )
    first, second = blocks("a.md")
    assert (first.is_run, first.commands) == (False, [["vllm", "serve", "x"]])
    assert (second.is_run, second.line) == (True, 8)
    assert commands("a.md") == [["env"]] and commands("a.md", "vllm", run_only=True) == []


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda each: " ".join(each)[:60] if each else "")
def test_a_command_and_its_options_exist(page: str, words: list[str]) -> None:
    parse(words)


def test_the_recipes_in_commands_are_shipped_and_valid() -> None:
    shipped = [words for _, words in ALL if any(word.startswith("recipes/") for word in words)]
    assert shipped
    for words in shipped:
        (recipe,) = (word for word in words if word.startswith("recipes/"))
        following = list(itertools.pairwise(words))
        load_recipe(ROOT / recipe, [value for option, value in following if option == "--set"])
        assert {value for option, value in following if option in ("--until", "--force")} <= set(NAMES)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["run", "a.yaml", "--untill", "forget"], "--untill"),
        (["align", "model"], "data"),
        (["init", "rows"], "rows"),
        (["delta", "applied", "a", "b", "c"], "applied"),
        (["--versions"], "--versions"),
    ],
)
def test_a_wrong_command_is_noticed(words: list[str], wrong: str) -> None:
    with pytest.raises(Exception, match=wrong):
        parse(words)


def test_the_blocks_on_sampling_are_recipes() -> None:
    shown = [block.text for block in blocks("docs/sampling.md") if block.is_run]
    assert shown
    for text in shown:
        start = yaml.safe_load(start_text("problems"))
        start["sample"] |= yaml.safe_load(text)["sample"]
        read_recipe(yaml.safe_dump(start), path=Path("sampling.yaml"))


def test_a_report_has_the_parts_that_its_page_names() -> None:
    page = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    named = {
        "".join(found) for found in re.findall(r'"([A-Z][\w ]+)"|^- \*\*([^*]+)\*\*', page, re.MULTILINE)
    }
    assert len(named) > 6
    made = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("src/allo/report/*.[pj]*"))
    assert {name for name in named if name not in made} == set()


def test_make_has_every_target_that_a_page_names() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in [*pages.pages(), "CONTRIBUTING.md"])
    used = {
        word
        for words in re.findall(r"(?:^|`|&& )make ([a-z][a-z ]*)", text, re.MULTILINE)
        for word in words.split()
    }
    assert {"demo", "test", "install"} <= used <= targets
