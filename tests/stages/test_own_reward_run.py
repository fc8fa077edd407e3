"""Runs judged by a function of the user's own: no row has an answer, from samples to the evaluation."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import pytest

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json, read_jsonl, write_jsonl
from allo.files.records import Completion, Pair, Verdict, Wrong
from allo.pipeline import run_all
from allo.stages import evaluate as evaluating
from allo.stages import judge as judging
from allo.stages.check import check
from own_reward_setup import NUM_PROMPTS, own_recipe, rows, write_inputs
from reward_setup import done

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trains through TRL; install the extra")
TRUTH = {row["id"]: row["truth"]["number"] for row in rows()}


def is_right(prompt_id: str, text: str) -> bool:
    numbers = [word for word in text.replace(".", " ").split() if word.isdigit()]
    return bool(numbers) and numbers[-1] == TRUTH[prompt_id]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run by right and wrong."""
    return run_all(own_recipe(inputs, tmp_path_factory.mktemp("finished"), "right"))


@pytest.fixture(scope="module")
def ranked(inputs: Path, finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same samples ranked by a number."""
    out = tmp_path_factory.mktemp("ranked")
    shutil.copytree(finished.path, out / "tiny")
    return run_all(own_recipe(inputs, out, "length", "pair.max_pairs_per_prompt=1", "pair.margin=0.2"))


def test_zeros_and_ones_are_right_and_wrong_in_pairs_and_accuracies(finished: RunFolder) -> None:
    verdicts = read_jsonl(finished.verdicts, Verdict)
    assert len(verdicts) == NUM_PROMPTS * 4
    for one in verdicts:
        assert one.correct == is_right(one.prompt_id, one.text) == (one.reward == 1)
    for pair in read_jsonl(finished.pairs, Pair):
        assert is_right(pair.prompt_id, pair.chosen) and not is_right(pair.prompt_id, pair.rejected)
    assert not any(is_right(one.prompt_id, one.completion) for one in read_jsonl(finished.wrong, Wrong))
    evaluation = read_json(finished.evaluation)
    for name, model in evaluation["models"].items():
        answers = evaluation["completions"][name]["own"]
        right = [is_right(row["prompt_id"], one["text"]) for row in answers for one in row["sampled"]]
        assert model["sets"]["own"]["sampled"]["accuracy"] == pytest.approx(mean(right))
        assert all(
            one["correct"] == is_right(row["prompt_id"], one["text"]) and "token_ids" not in one
            for row in answers
            for one in [row["greedy"], *row["sampled"]]
        )


def test_other_numbers_rank_the_samples_and_are_measured_by_their_mean(ranked: RunFolder) -> None:
    verdicts = {(one.prompt_id, one.text): one for one in read_jsonl(ranked.verdicts, Verdict)}
    for one in verdicts.values():
        assert one.reward == pytest.approx(-len(one.token_ids or []) / 10)
    pairs = read_jsonl(ranked.pairs, Pair)
    for pair in pairs:
        best, worst = (verdicts[pair.prompt_id, text].reward for text in (pair.chosen, pair.rejected))
        own = [one.reward for (prompt_id, _), one in verdicts.items() if prompt_id == pair.prompt_id]
        assert worst == min(own) and best - worst >= 0.2 and best <= max(own)
    assert len({pair.prompt_id for pair in pairs}) == len(pairs)
    measured = read_json(ranked.evaluation)["models"]["aligned"]["sets"]["own"]
    assert measured["greedy"] is None and measured["rewards"]["sampled"]["win_rate"]["num"] > 0
    assert measured["rewards"]["greedy"]["mean"]["value"] < 0


def test_a_run_that_is_stopped_while_judging_goes_on_there_and_ends_alike(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    """The function hangs at its fifth call, the first two of which are the check's; a batch is one prompt."""
    calls, source = tmp_path / "calls", (inputs / "rewards.py").read_text()
    (tmp_path / "rewards.py").write_text(
        f"import pathlib, time\nCALLS = pathlib.Path({str(calls)!r})\n{source}\n"
        "def counted(completions, **kwargs):\n"
        "    with CALLS.open('a') as file:\n        file.write('x')\n"
        "    time.sleep(60 * (CALLS.stat().st_size == 5))\n"
        "    return right(completions, **kwargs)\n"
    )
    more = (
        f"judge.function={tmp_path / 'rewards.py'}:counted",
        "judge.batch_size=1",
        "evaluate.sets={t: {task: planted_flaws, split: test, limit: 2, by_answer: true}}",
    )
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "tiny"))
    with pytest.raises(UserError, match=r"counted took longer than judge\.timeout"):
        run_all(own_recipe(inputs, tmp_path, "right", *more, "judge.timeout=5.0"), until="judge")
    assert not run.verdicts.exists() and len(calls.read_text()) == 5
    run_all(own_recipe(inputs, tmp_path, "right", *more, "judge.timeout=60.0"), until="judge")
    assert len(calls.read_text()) == 5 + 2 + NUM_PROMPTS - 2, "two batches were done"
    assert run.verdicts.read_bytes() == finished.verdicts.read_bytes()
    assert not list(run.path.glob("02-verdicts*.part"))


def test_a_changed_function_judges_again_and_an_unchanged_one_does_not(
    inputs: Path, finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copy(inputs / "rewards.py", tmp_path))
    shutil.copytree(finished.path, tmp_path / "tiny")
    recipe = own_recipe(inputs, tmp_path, "right", f"judge.function={own}:right")
    for change, stages in [("", ["judge"]), ("", []), ("\n# a remark\n", ["judge"])]:
        own.write_text(own.read_text() + change)
        run_all(recipe, until="judge")
        assert done(capsys.readouterr().err) == stages


def test_samples_without_a_verdict_are_left_out_and_counted(
    inputs: Path, finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "def some(completions, id, **_):\n"
        "    return [None if one == IDS[0] else len(text) % 2 for one, text in zip(id, completions)]\n"
        "def none(completions, **_):\n    return [None for _ in completions]\n"
    )
    (tmp_path / "rewards.py").write_text(f"IDS = {list(TRUTH)!r}\n{source}")
    write_jsonl(tmp_path / "rows.jsonl", rows())
    folder = RunFolder(tmp_path / "some")
    folder.path.mkdir()
    write_jsonl(folder.completions, read_jsonl(finished.completions, Completion))
    counts = judging.run(own_recipe(tmp_path, tmp_path, "some"), folder)
    assert counts["no_verdict"] == 4 and counts["completions"] == NUM_PROMPTS * 4
    assert "4 of 48 samples have no verdict" in capsys.readouterr().err
    assert {one.prompt_id for one in read_jsonl(folder.verdicts, Verdict)} == set(list(TRUTH)[1:])
    with pytest.raises(UserError, match=r"rewards\.py:none returned None, no verdict, for each of \d+"):
        judging.run(own_recipe(tmp_path, tmp_path, "none"), RunFolder(folder.path))


@needs_trl
@pytest.mark.parametrize("trainer", ["rloo", "grpo"])
def test_an_on_policy_trainer_weighs_the_functions_and_logs_each(
    trainer: str, inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(finished.path, tmp_path / "tiny")
    own = ["forget=null", "score=null", "locate=null", "improve.density=1.0", f"improve.trainer={trainer}"]
    steps = ["improve.training.max_steps=2", "improve.training.logging_steps=1", "judge.weights=[1.0, 0.5]"]
    run = run_all(own_recipe(inputs, tmp_path, ["right", "length"], *own, *steps), until="improve")
    logged = [json.loads(row) for row in (run.improve / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in logged if "reward" in row]
    assert len(trained) == 2
    for row in trained:
        weighed = row["rewards/right/mean"] + 0.5 * row["rewards/length/mean"]
        assert row["reward"] == pytest.approx(weighed, abs=1e-5)
        assert row["rewards/length/mean"] == pytest.approx(-row["completions/mean_length"] / 10, abs=1e-5)
    entry = read_json(run.manifest)["stages"]["improve"]
    assert str(inputs / "rewards.py") in entry["inputs"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["judge.weights=[1.0, 2.0]"], "weights has 2 numbers for 1 functions"),
        (["judge.reward_model=some/model"], "function and reward_model both judge"),
        (["judge.function=rewards"], "judge.function.0: not of the form FILE.py:NAME"),
        (["judge.function=/no/such.py:f"], "judge.function: /no/such.py: there is no such file"),
        (["judge.timeout=0"], "judge.timeout"),
    ],
)
def test_what_does_not_go_together_is_refused(
    inputs: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refusal:
        check(own_recipe(inputs, tmp_path, "right", *more))
    assert words in str(refusal.value)


def test_a_function_that_fails_is_found_before_the_first_stage(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def f(completions, verdict, **_):\n    return [0 for _ in completions]\n"
    )
    write_jsonl(tmp_path / "rows.jsonl", rows())
    with pytest.raises(UserError, match=r"missing a required argument: 'verdict'.*first rows of data"):
        check(own_recipe(tmp_path, tmp_path / "out", "f"))
    sets = "evaluate.sets={own: {task: planted_flaws, split: test, limit: 2}}"
    with pytest.raises(
        UserError, match=r"in line 7: TypeError.*for prompt '.*first rows of evaluate\.sets\.own"
    ):
        check(own_recipe(inputs, tmp_path / "out", "right", sets))


def test_a_right_answer_that_a_function_takes_for_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rewards.py").write_text("def f(completions, **_):\n    return [0 for _ in completions]\n")
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "2+2?", "answer": 4}, {"prompt": "3+3?", "answer": 6.0}])
    check(own_recipe(tmp_path, tmp_path / "out", "f"))
    assert "data: the right answers of the first 2 rows are wrong by it" in capsys.readouterr().err


def test_a_set_can_still_be_judged_by_its_answers(inputs: Path, finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "tiny")
    sets = "evaluate.sets={own: {task: planted_flaws, limit: 6, by_answer: true}}"
    run = run_all(own_recipe(inputs, tmp_path, "right", sets))
    assert run.verdicts.read_bytes() == finished.verdicts.read_bytes()
    accuracies = [
        read_json(one.evaluation)["models"]["aligned"]["sets"]["own"]["greedy"] for one in (run, finished)
    ]
    assert accuracies[0]["num"] == accuracies[1]["num"] == 6


def test_a_prompt_without_a_verdict_leaves_the_figures_of_every_model(
    inputs: Path, finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = TRUTH
    (tmp_path / "rewards.py").write_text(
        (inputs / "rewards.py").read_text()
        + "\ndef some(completions, id, **columns):\n"
        + f"    return [None if one == {first!r} else reward\n"
        + "            for one, reward in zip(id, right(completions, **columns), strict=True)]\n"
    )
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "tiny"))
    recipe = own_recipe(inputs, tmp_path, "right", f"judge.function={tmp_path / 'rewards.py'}:some")
    evaluating.run(recipe, run)
    assert "no verdict on an answer to 1 of 6 prompts" in capsys.readouterr().err
    own, theirs = (read_json(one.evaluation) for one in (run, finished))
    for name, model in own["models"].items():
        measured = model["sets"]["own"]
        assert measured["num_prompts"] == 5 and measured["sampled"]["num"] == 10
        rows = own["completions"][name]["own"]
        assert rows[0]["prompt_id"] == first and rows[0]["greedy"]["correct"] is None
        assert rows[1:] == theirs["completions"][name]["own"][1:]


def test_an_evaluation_that_is_stopped_by_its_function_goes_on_and_ends_alike(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    """The first attempt fails on one prompt's answers; those of the prompts before are not judged again."""
    calls, last = tmp_path / "calls", list(TRUTH)[5]
    (tmp_path / "rewards.py").write_text(
        (inputs / "rewards.py").read_text()
        + f"\nimport pathlib\nCALLS = pathlib.Path({str(calls)!r})\n"
        + "def once(completions, id, **columns):\n"
        + f"    if {last!r} in id and not CALLS.exists():\n        CALLS.write_text('')\n        raise OSError('full')\n"
        + "    CALLS.open('a').write(' '.join(id) + ' ') if CALLS.exists() else None\n"
        + "    return right(completions, **columns)\n"
    )
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "tiny"))
    recipe = own_recipe(
        inputs, tmp_path, "right", f"judge.function={tmp_path / 'rewards.py'}:once", "judge.batch_size=1"
    )
    run.evaluation.unlink()
    with pytest.raises(UserError, match="OSError: full"):
        evaluating.run(recipe, run)
    calls.write_text("")
    evaluating.run(recipe, run)
    assert set(calls.read_text().split()) == {last}
    assert read_json(run.evaluation)["completions"] == read_json(finished.evaluation)["completions"]
    assert not list(run.path.glob("08-eval.json.*"))


def test_without_sets_the_function_measures_the_prompts_held_out(inputs: Path, tmp_path: Path) -> None:
    recipe = own_recipe(inputs, tmp_path, "right", "evaluate.sets={}", "data.held_out=3")
    check(recipe)
    run = run_all(recipe)
    trained = {one.prompt_id for one in read_jsonl(run.completions, Completion)}
    measured = read_json(run.evaluation)
    for name, model in measured["models"].items():
        rows_held_out = measured["completions"][name]["held_out"]
        assert len(rows_held_out) == 3 and trained.isdisjoint(row["prompt_id"] for row in rows_held_out)
        right = [is_right(row["prompt_id"], one["text"]) for row in rows_held_out for one in row["sampled"]]
        assert model["sets"]["held_out"]["sampled"]["accuracy"] == pytest.approx(mean(right))
