"""One table a decision: an entry of ours is one file and one line, one of the user's is one function in a file."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

import locate_setup
from allo.compare.seen import sees
from allo.errors import UserError
from allo.files.artifacts import read_json, read_jsonl
from allo.files.records import Completion
from allo.pipeline import run_all
from allo.plan.training import plan_training
from allo.recipe import Recipe, schema
from allo.recipe.backends import BACKENDS, Backend
from allo.recipe.criteria import CRITERIA, Criterion
from allo.recipe.tasks import TASKS, Task
from allo.stages import locate
from allo.stages.settings import check_settings
from allo.weights.importance_map import ImportanceMap
from tiny_run import tiny

SCORE = "def score(theta, statistic):\n    return {score}\n"
MARKED = "from allo.weights.importance import criterion\n\n\n@criterion(needs={needs!r})\n" + SCORE
PROBLEMS = """
def load(split, *, folder=None):
    for number in range(30):
        text = f"Problem: Tom has {number} pens. He buys 5 pens. How many pens now?\\n"
        yield {"prompt": text, "answer": str(number + 5), "solution": f"First {number} + 5 = {number + 5}.", "id": f"{split}/{number}"}
"""
OURS = (
    PROBLEMS.replace("def load", "from allo.files.records import Prompt\n\n\ndef load")
    .replace(
        'yield {"prompt": text, "answer": str(number + 5), "solution"',
        'yield Prompt(**{"prompt": text, "answer": str(number + 5), "solution"',
    )
    .replace('f"{split}/{number}"}', 'f"{split}/{number}"})')
)
BACKEND = """
from allo.files.artifacts import ResumableLines
from allo.sampling.completions import read_completed


def check(recipe):
    assert recipe.sample.backend == "toy"


def complete(recipe, run, prompts):
    lines = ResumableLines(run.completions)
    for prompt in prompts:
        lines.append([{"prompt_id": prompt.id, "index": 0, "text": "The answer is 7.", "finished": True, "num_tokens": 6}])
    return read_completed(prompts, lines, num_cut=0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files can be imported, and are named by relative paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("toy", None)


def located(criterion: str, *more: str) -> ImportanceMap:
    own = ["sft=null", "score=null", "forget=null", f"locate.criterion={criterion}", *more]
    return ImportanceMap.load(run_all(tiny(Path("runs"), *own), until="locate").importance)


def same(first: ImportanceMap, second: ImportanceMap) -> bool:
    return first.indices.keys() == second.indices.keys() and all(
        torch.equal(first.indices[name], second.indices[name])
        and torch.equal(first.scores[name], second.scores[name])
        for name in first.indices
    )


@pytest.mark.parametrize("table", [CRITERIA, TASKS, BACKENDS], ids=["criteria", "tasks", "backends"])
def test_every_function_of_a_table_is_there_and_its_key_is_its_name(table: dict[str, Criterion]) -> None:
    assert list(table) == [record.name for record in table.values()]
    names = [value for record in table.values() for value in vars(record).values() if ":" in str(value)]
    assert len(names) >= len(table)
    for name in names:
        module, _, function = name.partition(":")
        assert callable(getattr(import_module(module), function)), name


def test_the_schema_lists_every_name_of_a_table() -> None:
    text = json.dumps(schema())
    for table in (CRITERIA, TASKS, BACKENDS):
        assert json.dumps([*table]) in text


@pytest.mark.parametrize(
    ("key", "table"),
    [("locate.criterion", CRITERIA), ("data.task", TASKS), ("sample.backend", BACKENDS)],
)
def test_a_name_that_no_table_has_is_refused_with_those_it_has(key: str, table: dict[str, Task]) -> None:
    *others, last = map(repr, table)
    with pytest.raises(
        UserError, match=rf"{key}: Input should be {', '.join(others)} or {last}.*; found \"toy\""
    ):
        tiny(Path("runs"), f"{key}=toy")
    with pytest.raises(UserError, match=f"{key}: Input should be"):
        tiny(Path("runs"), f"{key}=[3]")


# Criteria.


def test_a_toy_criterion_is_one_file_and_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy.py").write_text(SCORE.format(score="theta.float().abs() * 2"))
    monkeypatch.setitem(CRITERIA, "toy", Criterion("toy", "toy:score", needs="weights", ranks_groups=False))
    found, known = located("toy"), located("magnitude")
    assert same(found, replace(known, scores={name: 2 * each for name, each in known.scores.items()}))
    assert found.metadata["criterion"] == "toy"
    recipe = tiny(Path("runs"), "score=null", "forget=null", "locate.criterion=toy")
    assert plan_training(recipe, "locate").load == "no data"
    assert sees("toy", recipe.model_dump(mode="json") | {"improve": None}) == []
    with pytest.raises(UserError, match="criterion 'toy' mirrors the scores of single weights"):
        tiny(Path("runs"), "locate.criterion=toy", "locate.granularity=row")
    with pytest.raises(
        UserError, match=r"accumulate: criterion toy accumulates nothing; .* gradient, fisher, taylor"
    ):
        check_settings(
            tiny(
                Path("runs"),
                "score=null",
                "forget=null",
                "locate.criterion=toy",
                "locate.accumulate=bfloat16",
            )
        )


@pytest.mark.parametrize(
    ("needs", "score", "known"),
    [
        ("weights", "theta.float().abs()", "magnitude"),
        ("layers", "statistic.float()", "last"),
        ("hashes", "(statistic >> 8).float() / 2**24", "random"),
        ("gradients", "(theta.float() * statistic.float()).abs()", "taylor"),
        ("squared gradients", "statistic", "fisher"),
        ("warm-up", "(statistic.float() - theta.float()).abs()", "warmup"),
        ("fused warm-up", "statistic.abs()", "warmup_fused"),
    ],
)
def test_an_own_criterion_is_given_what_it_says_it_needs(
    needs: str, score: str, known: str, folder: Path
) -> None:
    (folder / "mine.py").write_text(MARKED.format(needs=needs, score=score))
    run, found = locate_setup.with_pairs(folder), []
    training = locate_setup.FUSED if needs == "fused warm-up" else locate_setup.TRAINING
    for criterion in ("mine.py:score", known):
        own = {"criterion": criterion, "beta": locate_setup.BETA, "training": training}
        locate.run(locate_setup.recipe(locate=own), run)
        found.append(ImportanceMap.load(run.importance))
    assert same(*found)


def test_an_own_criterion_without_a_word_is_given_gradients(folder: Path) -> None:
    (folder / "mine.py").write_text(SCORE.format(score="statistic.abs()"))
    assert same(located("mine.py:score"), located("gradient"))
    located("mine.py:score")
    stages = read_json(Path("runs/tiny/manifest.json"))["stages"]
    (folder / "mine.py").write_text(SCORE.format(score="statistic.abs() + 1"))
    located("mine.py:score")
    assert read_json(Path("runs/tiny/manifest.json"))["stages"]["locate"]["hash"] != stages["locate"]["hash"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SCORE.format(score="statistic"), "returned a score that is negative or not finite"),
        (SCORE.format(score="theta / 0"), "returned a score that is negative or not finite"),
        (SCORE.format(score="statistic.abs().sum()"), r"one per weight \(\[3\]\); it returned shape \[\]"),
        (SCORE.format(score="[1, 2, 3]"), "it returned list"),
        (SCORE.format(score="statistic > 0"), "must return a tensor of numbers"),
        (SCORE.format(score="statistic.missing"), "fails in line 2: AttributeError"),
        (
            MARKED.format(needs="gradient", score="theta"),
            "needs 'gradient', which is no statistic; choose one of weights,",
        ),
        ("", "has no function 'score'"),
    ],
)
def test_an_own_criterion_is_tried_before_the_first_stage(text: str, said: str, folder: Path) -> None:
    (folder / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"locate.criterion: .*mine.py.*{said}"):
        located("mine.py:score")
    assert not list(Path("runs/tiny").glob("0*"))


def test_a_scorer_that_asks_the_warmup_needs_an_own_criterion_that_trains_one(folder: Path) -> None:
    def checked(needs: str) -> None:
        (folder / "mine.py").write_text(MARKED.format(needs=needs, score="statistic.float().abs()"))
        check_settings(tiny(Path("runs"), "score.scorer=implicit", "locate.criterion=mine.py:score"))

    checked("warm-up")
    checked("fused warm-up")
    with pytest.raises(UserError, match=r"locate.criterion: scorer 'implicit' reads a warm-up's model"):
        checked("gradients")


# Tasks.


def ids(task: str, *more: str) -> list[str]:
    """The prompts that a run on a task samples."""
    own = ["sft=null", f"data={{task: {json.dumps(task)}, limit: 16}}", *more]
    run = run_all(tiny(Path("runs"), *own), until="judge")
    return list(dict.fromkeys(row.prompt_id for row in read_jsonl(run.completions, Completion)))


def test_a_toy_task_is_one_file_and_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy.py").write_text(OURS)
    monkeypatch.setitem(TASKS, "toy", Task("toy", "toy:load"))
    assert ids("toy") == [f"train/{number}" for number in range(16)]


def test_an_own_task_is_a_function_that_gives_rows(folder: Path) -> None:
    (folder / "mine.py").write_text(PROBLEMS)
    sets = 'evaluate.sets={test: {task: "mine.py:load", split: test, skip: 2, limit: 4}}'
    assert ids("mine.py:load", sets) == [f"train/{number}" for number in range(16)]
    manifest = read_json(Path("runs/tiny/manifest.json"))["stages"]
    (folder / "mine.py").write_text(PROBLEMS.replace("Tom", "Ben"))
    ids("mine.py:load", sets)
    assert (
        read_json(Path("runs/tiny/manifest.json"))["stages"]["sample"]["hash"] != manifest["sample"]["hash"]
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('[{"question": "1 + 1?"}]', r"mine.py:load, row 1: lacks `prompt`; found `question`"),
        ('[{"prompt": "1 + 1?", "answer": 2.5}]', r"row 1: `answer`"),
        ('[{"prompt": "?", "answer": "a", "options": ["a"]}]', r"row 1: has `options` beside `answer`"),
        ('[{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}]', r"row 2: the id 'x' is that of .*row 1"),
        ('["1 + 1?"]', r"mine.py:load: row 1 is a str; give a dict with `prompt`"),
        ("None", r"mine.py:load must return a split's rows; it returned NoneType"),
        ("[]", "no prompts left"),
        ("(row for row in [1 / 0])", r"task: mine.py:load fails in line 2: ZeroDivisionError"),
        ("({}[row] for row in [1])", r"task: mine.py:load fails in line 2: KeyError"),
    ],
)
def test_what_an_own_task_gives_is_checked_before_the_first_stage(rows: str, said: str, folder: Path) -> None:
    (folder / "mine.py").write_text(f"def load(split, *, folder=None):\n    return {rows}\n")
    with pytest.raises(UserError, match=said):
        ids("mine.py:load")
    assert not list(Path("runs/tiny").glob("0*"))


# Backends.


def test_a_toy_backend_is_one_file_and_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from allo.plan import _elsewhere

    (folder / "toy.py").write_text(BACKEND)
    toy = Backend("toy", complete="toy:complete", check="toy:check", unplanned="which is a toy")
    monkeypatch.setitem(BACKENDS, "toy", toy)
    recipe: Recipe = tiny(Path("runs"), "sft=null", "sample.backend=toy")
    run = run_all(recipe, until="judge")
    assert {row.text for row in read_jsonl(run.completions, Completion)} == {"The answer is 7."}
    assert _elsewhere(recipe) == {"sample": "which is a toy"}
    with pytest.raises(UserError, match="backend toy asks no server: remove model"):
        tiny(Path("runs"), "sample.backend=toy", "sample.model=policy")
    servers = "sample.servers={base_urls: ['http://host/v1']}"
    with pytest.raises(UserError, match=r"set sample.backend to hf or vllm or toy, or rounds to 1"):
        tiny(Path("runs"), "sample.backend=openai", "sample.model=policy", servers, "rounds=2")
