"""The improve stage under each `improve.loss`: what it trains on, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Pair, Verdict
from allo.pipeline import run_all
from allo.recipe import Recipe
from allo.stages.right_answers import gold_solutions, right_samples
from tiny_run import tiny

QUICK = ("sft=null", "locate=null", "score=null", "forget=null", "improve.density=1.0")
ONE_STEP = (
    "improve.training.max_steps=3",
    "improve.training.per_device_train_batch_size=64",  # all pairs
    "improve.training.warmup_steps=0",
    "improve.training.learning_rate=1e-4",
)
OWN_LOSS = """
from torch import Tensor
from allo.losses.pair_losses import PairSums


def hinge(pairs: PairSums, *, beta: float, margin: float = 1.0) -> Tensor:
    return (margin - beta * (pairs.chosen_logratios - pairs.rejected_logratios)).relu()
"""


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which a run up to its pairs lies."""
    out = tmp_path_factory.mktemp("sampled")
    run_all(tiny(out, *QUICK), until="pair")
    return out


def improved(sampled: Path, tmp_path: Path, *overrides: str) -> list[dict[str, float]]:
    """The metrics of a copy's improve stage."""
    shutil.copytree(sampled, tmp_path / "copy")
    run = run_all(tiny(tmp_path / "copy", *QUICK, *ONE_STEP, *overrides), until="improve")
    return [json.loads(line) for line in (run.improve / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "overrides",
    [
        ["improve.loss=dpo", "improve.loss_settings={label_smoothing: 0.1}"],
        ["improve.loss=ipo", "improve.loss_settings={length_average: false}"],
        ["improve.loss=bco", "improve.filter=highest"],
        ["improve.loss=simpo", "improve.keep=1.0", "improve.beta=2"],
        ["improve.anchor=1", "improve.filter=random"],
    ],
)
def test_a_loss_of_pairs_parts_them(sampled: Path, tmp_path: Path, overrides: list[str]) -> None:
    rows = improved(sampled, tmp_path, *overrides)
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]


@pytest.mark.parametrize("loss", ["sft", "rft"])
def test_a_loss_of_single_answers_learns_them(sampled: Path, tmp_path: Path, loss: str) -> None:
    rows = improved(sampled, tmp_path, f"improve.loss={loss}", "improve.keep=1.0")
    assert "rewards/margins" not in rows[0] and len(rows) == 3
    manifest = json.loads((tmp_path / "copy" / "tiny" / "manifest.json").read_text())
    assert manifest["stages"]["improve"]["counts"]["changed_weights"] > 0


def test_a_function_of_ones_own_trains_and_is_an_input_of_the_stage(sampled: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN_LOSS)
    own = (f"improve.loss={file}:hinge", "improve.loss_settings={margin: 2}")
    rows = improved(sampled, tmp_path, *own)
    assert rows[0]["loss"] == 2
    file.write_text(OWN_LOSS.replace("return (margin", "return (3 * margin"))
    again = run_all(tiny(tmp_path / "copy", *QUICK, *ONE_STEP, *own), until="improve")
    assert json.loads((again.improve / "metrics.jsonl").read_text().splitlines()[0])["loss"] == 6


def prompts(folder: Path, *, solutions: bool) -> Recipe:
    """A recipe of four prompts, the last of which has no pair."""
    file = folder / "rows.jsonl"
    rows = [
        {"id": f"p{n}", "prompt": f"q{n}", "answer": "1"}
        | ({"solution": f"gold {n}"} if solutions and n != 1 else {})
        for n in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny(folder, f"data={{file: {file}}}", "improve.loss=sft", "improve.keep=1.0")


def verdict(prompt: str, index: int, text: str, *, correct: bool = True, finished: bool = True) -> Verdict:
    """Its ids are its place's."""
    ids = [index, len(text)]
    return Verdict(prompt, index, text, finished, correct, float(correct), "1", "final_answer", ids)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    write_jsonl(folder.pairs, [Pair(f"p{n}", f"q{n}", "right", "wrong") for n in (0, 0, 1, 2)])
    verdicts = [
        verdict("p0", 0, "right"),
        verdict("p0", 1, " right"),
        verdict("p0", 2, "cut", finished=False),
        verdict("p1", 0, "wrong", correct=False),
        verdict("p3", 0, "right"),
        verdict("p3", 1, "also right"),
    ]
    write_jsonl(folder.verdicts, verdicts)
    return folder


def test_gold_solutions_are_those_of_prompts_with_a_pair_once_each(run: RunFolder, tmp_path: Path) -> None:
    assert gold_solutions(prompts(tmp_path, solutions=True), run) == [
        {"id": "p0", "prompt": "q0", "template": None, "completion": "gold 0"},
        {"id": "p2", "prompt": "q2", "template": None, "completion": "gold 2"},
    ]


def test_right_samples_are_distinct_finished_and_of_every_prompt(run: RunFolder, tmp_path: Path) -> None:
    assert right_samples(prompts(tmp_path, solutions=True), run) == [
        {"prompt": "q0", "template": None, "completion": "right", "completion_ids": [0, 5]},
        {"prompt": "q3", "template": None, "completion": "right", "completion_ids": [0, 5]},
        {"prompt": "q3", "template": None, "completion": "also right", "completion_ids": [1, 10]},
    ]


def test_the_right_samples_of_ready_pairs_are_their_distinct_chosen_answers(
    run: RunFolder, tmp_path: Path
) -> None:
    recipe = tiny(tmp_path, f"data={{pairs: {run.pairs}}}", "improve.loss=rft", "improve.keep=1.0")
    assert len(read_jsonl(run.pairs, Pair)) == 4
    found = right_samples(recipe, run)
    assert [row["prompt"] for row in found] == ["q0", "q1", "q2"]
    assert all(row["completion"] == "right" and row["finished"] for row in found)


def test_fine_tuning_without_solutions_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^improve\.loss: sft .* no prompt of `data` has a `solution`: choose rft"
    ):
        run_all(prompts(tmp_path, solutions=False))
    assert not list((tmp_path / "tiny").glob("0*"))


def test_solutions_of_prompts_without_a_pair_are_not_enough(run: RunFolder, tmp_path: Path) -> None:
    write_jsonl(run.pairs, [Pair("p1", "q1", "right", "wrong")])
    with pytest.raises(UserError, match="of the 1 prompts with a pair, and none has a `solution`"):
        gold_solutions(prompts(tmp_path, solutions=True), run)
