"""Runs judged by a reward model: no prompt has an answer, from samples, fresh ones or ready pairs to the evaluation."""

import shutil
from datetime import date
from pathlib import Path
from statistics import mean, median

import pytest

import tiny
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, read_json, read_jsonl, write_json, write_jsonl
from allo.files.records import Message, Pair, Prompt, Verdict, Wrong
from allo.files.rounds import of_round
from allo.models import templates
from allo.models.reward_model import RewardModel
from allo.pipeline import run_all
from allo.stages import pair as pairing
from allo.stages.reward import check_reward_model, load_reader
from reward_setup import SAME_REWARD, TEMPLATE, direct, done, problems, ranked
from tiny_run import tiny as tiny_recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reward model, `judge`, and prompts without answers, `open.jsonl`."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.reward_model(folder / "judge", max_position_embeddings=128)
    write_jsonl(folder / "open.jsonl", [{"id": one.id, "prompt": one.prompt} for one in problems()])
    return folder


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_all(ranked(inputs, tmp_path_factory.mktemp("finished")))


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> Path:
    """The folder below which a copy of the finished run lies."""
    shutil.copytree(finished.path, tmp_path / "copy" / "tiny")
    return tmp_path / "copy"


def test_a_verdict_has_the_completions_reward_and_the_better_half_is_correct(
    finished: RunFolder, inputs: Path
) -> None:
    verdicts = read_jsonl(finished.verdicts, Verdict)
    prompts = {prompt.id: prompt.prompt for prompt in problems()}
    for one in verdicts[::7]:
        assert one.reward == pytest.approx(direct(inputs, prompts[one.prompt_id], one.text), abs=SAME_REWARD)
    for id in prompts:
        own = {one.text: one for one in verdicts if one.prompt_id == id}
        middle = median(one.reward for one in own.values())
        assert all(one.correct == (one.reward > middle) for one in own.values())
        assert all(one.reward == own[one.text].reward for one in verdicts if one.prompt_id == id)


def test_pairs_are_best_against_worst_and_what_they_reject_is_forgotten(finished: RunFolder) -> None:
    rewards = {(one.prompt_id, one.text): one.reward for one in read_jsonl(finished.verdicts, Verdict)}
    pairs, wrong = read_jsonl(finished.pairs, Pair), read_jsonl(finished.wrong, Wrong)
    first = {pair.prompt_id: pair for pair in reversed(pairs)}
    for id, pair in first.items():
        own = [reward for (prompt_id, _), reward in rewards.items() if prompt_id == id]
        assert rewards[id, pair.rejected] == min(own)
    assert {(one.prompt_id, one.completion, one.solution) for one in wrong} == {
        (pair.prompt_id, pair.rejected, pair.chosen) for pair in pairs
    }
    assert all(one.right for one in wrong)


def test_open_sets_are_measured_by_rewards_and_wins_and_others_as_ever(finished: RunFolder) -> None:
    evaluation = read_json(finished.evaluation)
    models, completions = evaluation["models"], evaluation["completions"]
    for name in ("start", "aligned"):
        rows = completions[name]["open"]
        found = models[name]["sets"]["open"]
        for kind in ("greedy", "sampled"):
            own = [[row["greedy"]] if kind == "greedy" else row["sampled"] for row in rows]
            start = [
                [row["greedy"]] if kind == "greedy" else row["sampled"]
                for row in completions["start"]["open"]
            ]
            measured = found["rewards"][kind]
            assert measured["mean"]["value"] == pytest.approx(
                mean(answer["reward"] for answers in own for answer in answers)
            )
            assert measured["mean"]["low"] < measured["mean"]["value"] < measured["mean"]["high"]
            if name == "start":
                assert measured["win_rate"] is None
                continue
            outcomes = [
                0.5 if mine["reward"] == other["reward"] else float(mine["reward"] > other["reward"])
                for answers, others in zip(own, start, strict=True)
                for mine in answers
                for other in others
            ]
            assert measured["win_rate"]["value"] == pytest.approx(mean(outcomes))
            assert (
                measured["win_rate"]["low"] <= measured["win_rate"]["value"] <= measured["win_rate"]["high"]
            )
        assert found["greedy"] is None and found["pass_at"] == {}
        other = models[name]["sets"]["test"]
        assert other["greedy"]["num"] == 2 and "rewards" not in other
        assert all("reward" not in row["greedy"] for row in completions[name]["test"])


@pytest.mark.invariant(
    "A reward depends on neither batch nor padding, and one answer has one reward under every model."
)
def test_the_same_answer_has_one_reward_under_every_model(finished: RunFolder) -> None:
    completions = read_json(finished.evaluation)["completions"]
    found: dict[tuple[str, str], set[float]] = {}
    for answers in completions.values():
        for row in answers["open"]:
            for answer in [row["greedy"], *row["sampled"]]:
                found.setdefault((row["prompt_id"], answer["text"]), set()).add(answer["reward"])
    assert all(len(rewards) == 1 for rewards in found.values())


@pytest.mark.invariant(
    "Judging cut short reads nothing twice; another reward model in the folder is another run."
)
def test_another_reward_model_in_its_place_is_judged_by_anew(
    inputs: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "inputs"
    shutil.copytree(inputs, mine)
    run_all(ranked(inputs, copied))
    assert done(capsys.readouterr().err) == []
    run_all(ranked(mine, tmp_path / "own"), until="pair")
    capsys.readouterr()
    config = read_json(mine / "judge" / "config.json")
    write_json(mine / "judge" / "config.json", config | {"rms_norm_eps": 1e-2})
    run_all(ranked(mine, tmp_path / "own"), until="pair")
    assert done(capsys.readouterr().err)[0] == "judge"


@pytest.mark.invariant(
    "Judging cut short reads nothing twice; another reward model in the folder is another run."
)
def test_judging_cut_short_goes_on_and_reads_nothing_twice(
    inputs: Path, finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, read = RewardModel.rewards, 0
    limit = 3

    def counted(self: RewardModel, rows: list[list[int]]) -> list[float]:
        nonlocal read
        if read == limit:
            raise KeyboardInterrupt
        read += 1
        return whole(self, rows)

    monkeypatch.setattr(RewardModel, "rewards", counted)
    recipe = ranked(inputs, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_all(recipe, until="judge")
    assert not (recipe.run_folder / "02-verdicts.jsonl").exists()
    limit = 1000
    run_all(recipe, until="judge")
    verdicts = read_jsonl(finished.verdicts, Verdict)
    assert read == -(-len({(one.prompt_id, one.text) for one in verdicts}) // 4)
    assert (recipe.run_folder / "02-verdicts.jsonl").read_bytes() == finished.verdicts.read_bytes()
    assert not list(recipe.run_folder.glob("*.part"))


MOVING = ("improve.training.learning_rate=2e-3", "improve.training.lr_scheduler_type=constant")


def test_a_reward_model_reads_the_runs_date_also_on_another_day(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judging that goes on after midnight gives the same completion the same reward."""
    dated = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    place = str(tiny.reward_model(tmp_path / "judge", template=dated))
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    recipe = tiny_recipe(tmp_path, f"judge.reward_model={place}", "judge.dtype=float32")
    asked = [(problems()[0], "so it is")]
    read = []
    for day in (date(2024, 2, 29), date(2024, 3, 1)):
        monkeypatch.setattr(templates, "today", lambda day=day: day)
        read.append(load_reader(recipe, place, run).rows(asked))
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("template", "said"), [(None, True), (TEMPLATE, True), ("{{ tools }}" + TEMPLATE, False)]
)
def test_tools_that_a_reward_model_is_not_shown_are_said(
    template: str | None, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tiny.reward_model(tmp_path / "judge", template=template))
    recipe = tiny_recipe(tmp_path, f"judge.reward_model={place}")
    asked = [Message(role="user", content="2 + 3?")]
    prompts = [Prompt("p", asked), Prompt("q", asked, template={"tools": [{"name": "add"}]})]
    check_reward_model(recipe, "judge.reward_model", place, prompts)
    assert ("`tools` or `documents` of 1 of 2 prompts" in capsys.readouterr().err) == said


@pytest.mark.invariant(
    "Each round ranks fresh samples of the model that it begins with; what RLOO and GRPO sample has the reward that the judge stage gives."
)
@pytest.mark.slow  # test_rounds.py holds it of verdicts by the right answer
def test_each_round_ranks_fresh_samples_of_the_model_it_begins_with(inputs: Path, tmp_path: Path) -> None:
    run = run_all(ranked(inputs, tmp_path, *MOVING, "rounds=2")).path
    first, second = (RunFolder(run / f"round-{number}") for number in (1, 2))
    assert first.completions.read_bytes() != second.completions.read_bytes()
    assert read_json(run / "manifest.json")["stages"]["round-1/improve"]["counts"]["changed_weights"] > 0
    for one in (first, second):
        verdicts, pairs = read_jsonl(one.verdicts, Verdict), read_jsonl(one.pairs, Pair)
        rewards = {(verdict.prompt_id, verdict.text): verdict.reward for verdict in verdicts}
        assert pairs and all(
            rewards[pair.prompt_id, pair.chosen] > rewards[pair.prompt_id, pair.rejected] for pair in pairs
        )
        rejected = {(pair.prompt_id, pair.rejected, pair.chosen) for pair in pairs}
        wrong = read_jsonl(one.wrong, Wrong)
        assert {(each.prompt_id, each.completion, each.solution) for each in wrong} == rejected
    for one in read_jsonl(second.verdicts, Verdict)[::9]:
        prompt = next(prompt for prompt in problems() if prompt.id == one.prompt_id)
        assert one.reward == pytest.approx(direct(inputs, prompt.prompt, one.text), abs=SAME_REWARD)


def test_a_later_round_without_a_pair_says_which_and_counts_as_diverged(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    recipe = ranked(inputs, tmp_path, "rounds=2", "pair.margin=1000")
    shutil.copy(finished.verdicts, tmp_path)
    with pytest.raises(DivergedError, match=r"round 2: no preference pair .* Or lower the learning rates"):
        pairing.run(of_round(recipe, 2), RunFolder(tmp_path))
    with pytest.raises(UserError, match=r"^no preference pair") as refusal:
        pairing.run(of_round(recipe, 1), RunFolder(tmp_path))
    assert not isinstance(refusal.value, DivergedError)


def test_what_a_later_round_cannot_read_is_no_divergence(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    """A comparison would count it as the settings' failure, and not try again."""
    shutil.copy(finished.verdicts, tmp_path)
    recipe = ranked(inputs, tmp_path, "rounds=2", f"data.file={tmp_path / 'gone.jsonl'}")
    with pytest.raises(UserError, match=r"gone\.jsonl") as refusal:
        pairing.run(of_round(recipe, 2), RunFolder(tmp_path))
    assert not isinstance(refusal.value, DivergedError)
