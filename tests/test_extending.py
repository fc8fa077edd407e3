"""docs/extending.md, carried out: its files are written, its tests pass, and a run takes its functions."""

import importlib
import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from allo.files.artifacts import read_json, read_jsonl
from allo.files.records import Completion, Verdict
from allo.models.load import load_tokenizer
from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.tasks.sources import training_prompts
from allo.weights.importance_map import ImportanceMap
from tiny_run import LAB, RECIPE, overrides

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
FILES = dict(
    re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, in a folder from which they can be imported."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def run_tests(file: str) -> int:
    """Run a page's test file; how many tests it has."""
    module = importlib.import_module(file.removesuffix(".py"))
    names = re.findall(r"^def (test_\w+)\(\):", FILES[file], re.MULTILINE)
    for name in names:
        getattr(module, name)()
    return len(names)


@pytest.mark.parametrize(
    "file",
    [
        "test_my_reward.py",
        "test_my_scorer.py",
        "test_my_loss.py",
        "test_my_forgetting_loss.py",
        "test_my_criterion.py",
        "test_my_task.py",
    ],
)
def test_the_pages_tests_pass(file: str, folder: Path) -> None:
    assert run_tests(file) == 1


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("my_reward.py", "numbers[-1]", "numbers[0]"),
        ("my_scorer.py", "str.isdigit", "str.isalpha"),
        ("my_loss.py", ".clamp(min=0)", ".abs()"),
        ("my_forgetting_loss.py", ".clamp(min=0)", ".abs()"),
        ("my_criterion.py", " / (", " * ("),
        ("my_task.py", "is (split", "in (True, split"),
    ],
)
def test_the_pages_tests_can_fail(file: str, right: str, wrong: str, folder: Path) -> None:
    assert right in FILES[file]
    (folder / file).write_text(FILES[file].replace(right, wrong))
    with pytest.raises(AssertionError):
        run_tests(f"test_{file}")


@pytest.mark.invariant("What docs/extending.md shows runs.")
def test_a_run_takes_the_pages_scorer_and_loss(folder: Path) -> None:
    own = {
        f"{block}.{key}": value
        for file, block in (("score.yaml", "score"), ("improve.yaml", "improve"), ("forget.yaml", "forget"))
        for key, value in yaml.safe_load(FILES[file])[block].items()
    }
    settings = [
        f"{key}={value if isinstance(value, str) else yaml.safe_dump(value)}" for key, value in own.items()
    ]
    recipe = load_recipe(RECIPE, overrides(folder / "runs", *settings, "sft=null"))
    run = run_all(recipe, until="improve")
    table = pq.read_table(run.token_scores)
    assert table.schema.metadata[b"scorer"].decode() == own["score.scorer"]
    assert table.column_names[-3:] == [f"scores/{name}" for name in own["score.beside"]]
    tokenizer = load_tokenizer(LAB)
    for row in table.to_pylist():
        for token, score, doubt in zip(
            row["token_ids"], row["scores"], row["scores/confidence"], strict=True
        ):
            number = any(map(str.isdigit, tokenizer.decode([token])))
            assert score == pytest.approx(doubt if number else 1.0)
    assert read_json(run.manifest)["stages"]["improve"]["config"]["improve"]["loss"] == "my_loss.py:hinge"
    believed = [json.loads(line) for line in (run.forget / "metrics.jsonl").read_text().splitlines()]
    assert believed and all("logratios/forgotten" not in row for row in believed)  # without a reference
    stages = read_json(run.manifest)["stages"]
    assert stages["forget"]["config"]["forget"]["loss"] == "my_forgetting_loss.py:down_to_a_tenth"
    # The file is part of what the stage was made from: edited, it is run anew.
    before = read_json(run.manifest)["stages"]["score"]["hash"]
    (folder / "my_scorer.py").write_text(FILES["my_scorer.py"] + "\n# edited\n")
    run_all(recipe, until="score")
    assert read_json(run.manifest)["stages"]["score"]["hash"] != before
    (folder / "my_forgetting_loss.py").write_text(FILES["my_forgetting_loss.py"].replace("0.1", "0.2"))
    run_all(recipe, until="forget")
    assert read_json(run.manifest)["stages"]["forget"]["hash"] != stages["forget"]["hash"]


def test_a_run_takes_the_pages_reward(folder: Path) -> None:
    function = yaml.safe_load(FILES["judge.yaml"])["judge"]["function"]
    settings = [f"judge.function={function}", "data.limit=4", "sft=null"]
    recipe = load_recipe(RECIPE, overrides(folder / "runs", *settings))
    run = run_all(recipe, until="judge")
    right = {one.id: one.answer for one in training_prompts(recipe)}
    for verdict in read_jsonl(run.verdicts, Verdict):
        numbers = re.findall("[0-9]+", verdict.text)
        assert verdict.correct == (numbers[-1:] == [right[verdict.prompt_id]])


def test_a_run_takes_the_pages_criterion_and_task(folder: Path) -> None:
    task, criterion = (yaml.safe_load(FILES[file]) for file in ("task.yaml", "locate.yaml"))
    settings = [
        f"data={json.dumps(task['data'])}",
        f"evaluate.sets={json.dumps(task['evaluate']['sets'])}",
        f"locate.criterion={criterion['locate']['criterion']}",
        *("score=null", "forget=null", "sft=null"),
    ]
    run = run_all(load_recipe(RECIPE, overrides(folder / "runs", *settings)), until="locate")
    completions = read_jsonl(run.completions, Completion)
    assert {row.prompt_id for row in completions} == {f"train/{n}" for n in range(1, 30) if n % 5}
    assert ImportanceMap.load(run.importance).metadata["criterion"] == "my_criterion.py:pulled"
