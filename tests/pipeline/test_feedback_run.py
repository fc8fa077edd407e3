"""A run on labelled feedback: nothing is sampled; bad completions are forgotten, all are learnt by KTO, and measured."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from allo.cli.result import show_result
from allo.errors import UserError
from allo.files.artifacts import read_json, read_jsonl
from allo.files.records import Feedback, Wrong
from allo.pipeline import run_all
from allo.plan.preview import preview
from allo.plan.preview_page import lines
from allo.plan.training import plan_training
from allo.recipe import Recipe, load_recipe
from allo.tasks.feedback import read_feedback
from allo.tasks.overlap import words
from tiny_run import steps, write_recipe

STEPS = steps(4, 2, learning_rate=1e-4)


def recipe(folder: Path, *more: str) -> Recipe:
    improve = STEPS | {"loss": "kto", "beta": 0.2}
    data = {"feedback": str(folder / "feedback.jsonl")}
    file = write_recipe(folder, data=data, locate=STEPS, forget=STEPS, improve=improve)
    return load_recipe(file, [f"out={folder / 'runs'}", *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with completions of 40 prompts, one in three of them bad, and two prompts with both kinds."""
    folder = tmp_path_factory.mktemp("feedback")
    rows = []
    for number in range(40):
        prompt = f"Tom has {number} pens and buys 3 more. How many?\n"
        good = number % 3 != 0
        answer = f"The answer is {number + 3}." if good else f"It is {number + 4}, so {number + 4}."
        rows.append({"prompt": prompt, "completion": answer, "label": int(good)})
        if number < 2:
            rows.append(rows[-1] | {"completion": "I cannot say.", "label": not good})
    (folder / "feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    return run_all(recipe(place)).path


@pytest.mark.slow
def test_nothing_is_sampled_and_the_bad_completions_are_forgotten(finished: Path) -> None:
    stages = read_json(finished / "manifest.json")["stages"]
    assert list(stages) == ["sft", "pair", "locate", "score", "forget", "improve", "evaluate", "report"]
    kept = read_jsonl(finished / "03-feedback.jsonl", Feedback)
    wrong = read_jsonl(finished / "03-wrong.jsonl", Wrong)
    assert [one.completion for one in wrong] == [row.completion for row in kept if not row.label]
    assert all(one.solution is None and not one.right for one in wrong)
    scored = pq.read_table(finished / "05-token-scores.parquet").to_pylist()
    assert {row["id"] for row in scored} == {one.id for one in wrong}
    counts = stages["pair"]["counts"]
    assert (counts["good"], counts["bad"]) == (sum(row.label for row in kept), len(wrong))
    assert stages["locate"]["counts"]["completions"] == len(kept)


@pytest.mark.slow
def test_no_prompt_is_trained_on_and_held_out(finished: Path) -> None:
    kept = read_jsonl(finished / "03-feedback.jsonl", Feedback)
    held_out = read_jsonl(finished / "03-held-out.jsonl", Feedback)
    seen, unseen = ({words(str(row.prompt)) for row in side} for side in (kept, held_out))
    assert len(unseen) == 8 and seen.isdisjoint(unseen)  # a fifth of 40 prompts
    read, _ = read_feedback(finished / "03-feedback.jsonl")  # a run's file is a user's file
    assert read == kept


@pytest.mark.slow
def test_held_out_completions_are_measured_before_and_after(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = read_json(finished / "08-eval.json")["models"]
    start, aligned = models["start"]["feedback"], models["aligned"]["feedback"]
    assert start["reward_auc"] is None and start["good"] is None  # every reward is 0 there
    assert aligned["good"]["answer"]["value"] > aligned["bad"]["answer"]["value"]
    assert aligned["reward_auc"]["low"] <= aligned["reward_auc"]["value"] <= aligned["reward_auc"]["high"]
    assert aligned["overlap"]["exact"] == 0
    show_result(recipe(place), run_all(recipe(place), force="report"))
    said = capsys.readouterr().err
    where = f"On {aligned['num_good']} good and {aligned['num_bad']} bad held-out completions"
    assert where in said
    for name in ("report.html", "report.md", "model-card.md"):
        text = (finished / name).read_text()
        assert "Held-out feedback" in text and f"{aligned['good']['answer']['value']:.3f}" in text
    assert "labelled completions of the file feedback.jsonl" in (finished / "model-card.md").read_text()


def test_the_check_shows_labels_and_the_tokens_that_carry_loss(place: Path) -> None:
    said = "\n".join(line.plain for line in lines(preview(recipe(place)), width=200, plain=True))
    assert "data.feedback, the first good one of its rows" in said
    assert re.search(r"\d+ good and \d+ bad completions of 32 prompts, \d of which have both; no pair", said)
    assert "40 rows: label given as a number or text, and read as true or false" in said
    good, bad = said.split("the first bad one of its rows")
    assert "all carry loss" in good and "forget weighs its tokens by the scores" in bad
    assert "improve counts 50% of them" in bad


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more"),
    [("improve", []), ("locate", []), ("locate", ["locate.criterion=warmup_fused"])],
)
def test_the_plan_knows_the_memory_of_its_stages(place: Path, stage: str, more: list[str]) -> None:
    plan = plan_training(recipe(place, *more), stage)
    assert plan.bytes["activations"] > 0 and plan.total > plan.bytes["weights"]
    assert "pairs" not in plan.load


def test_a_label_that_no_row_has_is_missed_before_the_first_stage(place: Path, tmp_path: Path) -> None:
    rows = [
        row for row in map(json.loads, (place / "feedback.jsonl").read_text().splitlines()) if row["label"]
    ]
    (tmp_path / "feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UserError, match=r"data\.feedback: all \d+ completions to train on are good, and forget"
    ):
        run_all(recipe(tmp_path))
    assert not (tmp_path / "runs" / "mine" / "00-sft").exists()
