"""A scorer, a loss or a trainer of ours is one file and one line: the line is put into its table, and a run takes it."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from allo.compare.seen import sees
from allo.files.artifacts import RunFolder
from allo.pipeline import run_all
from allo.plan import plan, plan_stage
from allo.recipe import Recipe
from allo.recipe.kinds import REWARDS, RIGHT, WRONG
from allo.recipe.losses import (
    ANSWER_LOSSES,
    FORGETTING_LOSSES,
    PAIR_LOSSES,
    AnswerLoss,
    ForgettingLoss,
    PairLoss,
)
from allo.recipe.own_code import function_of
from allo.recipe.scores import SCORERS, Scorer
from allo.recipe.trainers import TRAINERS, Trainer
from allo.stages.settings import check_settings
from tiny_run import tiny

PLAIN = ("sft=null", "locate=null", "forget.density=1.0", "improve.density=1.0", "score.scorer=edit")
STEPS = ("forget.training.max_steps=3", "improve.training.max_steps=2", "improve.training.learning_rate=1e-4")
SCORER = """
def of_places(rows, context):
    return [[float(place % 2) for place in range(len(row.tokens.completion_ids))] for row in rows]
"""
PAIR_LOSS = """
from allo.losses.needs import pair_loss

@pair_loss(needs_reference=False)
def apart(pairs, *, beta, margin=5.0):
    return margin - 0 * (pairs.chosen_logps - pairs.rejected_logps)
"""
ROWS = """
from allo.files.artifacts import read_jsonl
from allo.files.records import Pair

def answers(recipe, run):
    return [{"prompt": pair.prompt, "completion": pair.chosen} for pair in read_jsonl(run.pairs, Pair)][:3]
"""
FORGETTING_LOSS = """
from allo.losses.needs import forgetting_loss

@forgetting_loss(needs_reference=False, gives_completions=True)
def ascent(tokens, *, beta):
    return (tokens.weights * tokens.logps).sum(-1)
"""
TRAINER = """
def train(recipe, run):
    run.improve.mkdir()
    (run.improve / "metrics.jsonl").write_text("{}")
    return {"steps": 7}
"""


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which a run up to its token scores lies."""
    out = tmp_path_factory.mktemp("sampled")
    run_all(tiny(out, *PLAIN), until="score")
    return out


@pytest.fixture
def folder(sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and a place from which modules are imported."""
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(sampled, tmp_path / "runs")
    return tmp_path


def recipe_of(folder: Path, *own: str) -> Recipe:
    recipe = tiny(folder / "runs", *PLAIN, *STEPS, *own)
    check_settings(recipe)
    return recipe


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def counts(run: RunFolder, stage: str) -> dict[str, int]:
    return json.loads(run.manifest.read_text())["stages"][stage]["counts"]


def seen(recipe: Recipe) -> list[str]:
    return sees("mine", recipe.model_dump(mode="json"))


def test_a_scorer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy_scorer.py").write_text(SCORER)
    monkeypatch.setitem(SCORERS, "toy", Scorer("toy", "toy_scorer:of_places", (), frozenset({RIGHT})))
    recipe = recipe_of(folder, "score.scorer=toy", "score.beside=[uniform]", "improve=null")
    run = run_all(recipe, until="score")
    table = pq.read_table(run.token_scores).to_pylist()
    assert table
    for row in table:
        assert row["scores"] == [float(place % 2) for place in range(len(row["scores"]))]
    assert seen(recipe) == [RIGHT, WRONG]
    assert "log-probs" not in plan_stage(recipe, "score").bytes  # it needs no model


def test_a_scorer_of_log_ratios(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy_logratios.py").write_text(SCORER.replace("float(place % 2)", "float(place % 2) * 2 - 1"))
    line = Scorer("toy", "toy_logratios:of_places", (), frozenset({RIGHT}), logratios=True)
    monkeypatch.setitem(SCORERS, "toy", line)
    run = run_all(recipe_of(folder, "score.scorer=toy"), until="score")
    for row in pq.read_table(run.token_scores).to_pylist():
        below, above = row["scores"][::2], row["scores"][1::2]
        assert all(0 < score < 0.5 for score in below) and all(0.5 < score < 1 for score in above)


def test_a_loss_of_pairs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy_pair_loss.py").write_text(PAIR_LOSS)
    monkeypatch.setitem(PAIR_LOSSES, "toy", PairLoss("toy", "toy_pair_loss:apart"))
    own = ("forget=null", "improve.loss=toy", "improve.keep=1.0", "improve.loss_settings={margin: 7}")
    recipe = recipe_of(folder, *own)
    run = run_all(recipe, until="improve")
    assert [row["loss"] for row in metrics(run.improve)[:2]] == [7.0, 7.0]
    assert seen(recipe) == [RIGHT, WRONG]
    assert "slots" not in plan_stage(recipe, "improve").bytes  # it has no reference


def test_a_loss_of_single_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy_answers.py").write_text(ROWS)
    line = AnswerLoss("toy", "toy_answers:answers", sees=frozenset({RIGHT}))
    monkeypatch.setitem(ANSWER_LOSSES, "toy", line)
    recipe = recipe_of(folder, "forget=null", "improve.loss=toy", "improve.keep=1.0")
    assert counts(run_all(recipe, until="improve"), "improve")["rows"] == 3
    assert seen(recipe) == [RIGHT]


def test_a_forgetting_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy_forgetting_loss.py").write_text(FORGETTING_LOSS)
    monkeypatch.setitem(FORGETTING_LOSSES, "toy", ForgettingLoss("toy", "toy_forgetting_loss:ascent"))
    whole = "forget.training.per_device_train_batch_size=64"  # a step sees all rows
    recipe = recipe_of(folder, "forget.loss=toy", whole, "forget.training.learning_rate=1e-4")
    rows = metrics(run_all(recipe, until="forget").forget)
    assert rows[-1]["probabilities/forgotten"] < rows[0]["probabilities/forgotten"]
    assert rows[0]["loss"] < 0 and "logratios/forgotten" not in rows[0]
    assert "slots" not in plan_stage(recipe, "forget").bytes


def test_a_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy_trainer.py").write_text(TRAINER)
    line = Trainer("toy", "toy_trainer:train", sees=frozenset({REWARDS}))
    monkeypatch.setitem(TRAINERS, "toy", line)
    recipe = recipe_of(folder, "forget=null", "score=null", "improve.trainer=toy")
    assert counts(run_all(recipe, until="improve"), "improve") == {"steps": 7}
    assert seen(recipe) == [REWARDS]
    assert "improve" in plan(recipe).unplanned


@pytest.mark.parametrize("table", [SCORERS, PAIR_LOSSES, ANSWER_LOSSES, FORGETTING_LOSSES, TRAINERS])
def test_every_line_names_a_function(table: dict[str, Scorer]) -> None:
    functions = [function_of(line.function, key="table") for line in table.values()]
    assert all(map(callable, functions))
    assert [line.name for line in table.values()] == list(table)


@pytest.mark.parametrize("name", [name for name, line in TRAINERS.items() if line.config])
def test_every_trainer_of_trl_names_its_parts(name: str) -> None:
    for package in TRAINERS[name].packages:
        pytest.importorskip(package)
    assert issubclass(function_of(TRAINERS[name].config, key="table"), object)
    assert callable(function_of(TRAINERS[name].parts, key="table"))
