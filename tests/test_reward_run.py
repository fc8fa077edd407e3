"""Runs judged by a reward model: no prompt has an answer, from samples, fresh ones or ready pairs to the evaluation."""

import json
import shutil
from datetime import date
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch

import tiny
from allo import tasks
from allo.artifacts import RunFolder, read_json, read_jsonl, write_json, write_jsonl
from allo.errors import DivergedError, UserError
from allo.hf import templates
from allo.hf.reward_model import RewardModel, judged_ids, load_reward_model
from allo.pipeline import run_all
from allo.plan import plan
from allo.recipe import Recipe
from allo.records import Completion, Message, Pair, Prompt, Verdict, Wrong
from allo.rounds import of_round
from allo.stages import pair as pairing
from allo.stages.check import check
from allo.stages.reward import check_reward_model, load_reader
from tiny_run import LAB
from tiny_run import tiny as tiny_recipe

NUM_PROMPTS = 10
# float32: what another batch changes by rounding, of rewards of about 1.
SAME_REWARD = 1e-5
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
QUICK = (
    "sft=null",
    "data.limit=null",
    "evaluate.kl=null",
    "score.scorer=edit",
    "score.beside=[advantage]",
    "sample.max_new_tokens=24",
    "evaluate.max_new_tokens=24",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reward model, `judge`, and prompts without answers, `open.jsonl`."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.reward_model(folder / "judge", max_position_embeddings=128)
    write_jsonl(folder / "open.jsonl", [{"id": one.id, "prompt": one.prompt} for one in problems()])
    return folder


def problems() -> list[Prompt]:
    return list(islice(tasks.load("planted_flaws", "train"), NUM_PROMPTS))


def ranked(inputs: Path, out: Path, *more: str) -> Recipe:
    """The tiny run on prompts without answers, measured on them and on a set that has answers."""
    sets = {
        "open": {"file": str(inputs / "open.jsonl")},
        "test": {"task": "planted_flaws", "split": "test", "limit": 2},
    }
    judge = {"reward_model": str(inputs / "judge"), "dtype": "float32", "batch_size": 4}
    return tiny_recipe(
        out,
        f"data={{file: {inputs / 'open.jsonl'}}}",
        f"judge={json.dumps(judge)}",
        f"evaluate.sets={json.dumps(sets)}",
        *QUICK,
        *more,
    )


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_all(ranked(inputs, tmp_path_factory.mktemp("finished")))


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> Path:
    """The folder below which a copy of the finished run lies."""
    shutil.copytree(finished.path, tmp_path / "copy" / "tiny")
    return tmp_path / "copy"


def done(said: str) -> list[str]:
    """The stages that a run did, in order."""
    return [line.split()[0] for line in said.splitlines() if line.endswith("...")]


def direct(inputs: Path, prompt: str | list[Message], text: str) -> float:
    """A completion's reward, read alone."""
    judge = load_reward_model(inputs / "judge", dtype=torch.float32, device="cpu")
    return judge.rewards([judged_ids(judge.tokenizer, prompt, text, max_length=128)[0]])[0]


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


def test_the_same_answer_has_one_reward_under_every_model(finished: RunFolder) -> None:
    completions = read_json(finished.evaluation)["completions"]
    found: dict[tuple[str, str], set[float]] = {}
    for answers in completions.values():
        for row in answers["open"]:
            for answer in [row["greedy"], *row["sampled"]]:
                found.setdefault((row["prompt_id"], answer["text"]), set()).add(answer["reward"])
    assert all(len(rewards) == 1 for rewards in found.values())


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


needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trains through TRL; install the extra")


def on_policy(inputs: Path, finished: RunFolder, out: Path, trainer: str, *more: str) -> RunFolder:
    """The finished run's samples, improved by a method that samples by itself."""
    shutil.copytree(finished.path, out / "tiny")
    own = ["forget=null", "score=null", "locate=null", "improve.density=1.0", f"improve.trainer={trainer}"]
    return run_all(ranked(inputs, out, *own, "improve.training.logging_steps=1", *more), until="improve")


@needs_trl
@pytest.mark.parametrize("trainer", ["rloo", "grpo"])
def test_what_an_on_policy_trainer_samples_has_the_reward_that_the_judge_stage_gives(
    trainer: str, inputs: Path, finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from allo.baselines import on_policy as through_trl

    given: list[tuple[Completion, float]] = []
    make, read, sizes = through_trl.on_policy_trainer, RewardModel.rewards, []

    def spy(*args: Any, rewards: Any, **settings: Any) -> Any:
        def kept(samples: list[Completion]) -> list[float]:
            found = rewards(samples)
            given.extend(zip(samples, found, strict=True))
            return found  # type: ignore[no-any-return]

        judged = read_jsonl(finished.verdicts, Verdict)
        again = rewards([Completion(one.prompt_id, 0, one.text, one.finished, 1) for one in judged])
        assert again == pytest.approx([one.reward for one in judged], abs=SAME_REWARD)
        sizes.clear()
        return make(*args, rewards=kept, **settings)

    def counted(self: RewardModel, rows: list[list[int]]) -> list[float]:
        sizes.append(len(rows))
        return read(self, rows)

    monkeypatch.setattr(through_trl, "on_policy_trainer", spy)
    monkeypatch.setattr(RewardModel, "rewards", counted)
    run = on_policy(inputs, finished, tmp_path, trainer, "improve.training.max_steps=1")
    assert read_json(run.manifest)["stages"]["improve"]["counts"]["samples_cut"] == 0
    prompts = {prompt.id: prompt.prompt for prompt in problems()}
    distinct = {(one.prompt_id, one.text): reward for one, reward in given}
    assert max(sizes) == 4 and sum(sizes) == len(distinct) < len(given), "in batches, and the same text once"
    for (prompt_id, text), reward in distinct.items():
        assert reward == pytest.approx(direct(inputs, prompts[prompt_id], text), abs=SAME_REWARD)


@needs_trl
def test_samples_that_lose_their_beginning_are_counted(
    inputs: Path, finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rewards = RewardModel.rewards

    def counted(self: RewardModel, rows: list[list[int]]) -> list[float]:
        read.extend(map(len, rows))
        return rewards(self, rows)

    monkeypatch.setattr(RewardModel, "rewards", counted)
    few = ("improve.training.max_steps=2", "judge.max_length=16")
    run = on_policy(inputs, finished, tmp_path, "rloo", *few)
    stages = read_json(run.manifest)["stages"]
    assert set(read) == {16}, "all are cut"
    assert stages["improve"]["counts"]["samples_cut"] == len(read) - stages["judge"]["counts"]["cut"] > 0


@needs_trl
def test_the_rewards_of_a_reward_model_rise_and_a_seed_makes_it_repeatable(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    more = (
        *("sample.num_generations=8", "improve.training.per_device_train_batch_size=32"),
        *("improve.training.max_steps=12", "improve.training.learning_rate=5e-4", "improve.beta=0.01"),
    )
    run, again = (on_policy(inputs, finished, tmp_path / name, "rloo", *more) for name in ("one", "two"))
    rewards = [json.loads(row)["reward"] for row in (run.improve / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 4 * 0.1
    assert all(
        (run.improve / name).read_bytes() == (again.improve / name).read_bytes()
        for name in ("delta.safetensors", "metrics.jsonl")
    )


@needs_trl
def test_a_reward_model_is_part_of_what_an_on_policy_trainer_holds_and_depends_on(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    few = "improve.training.max_steps=1"
    entries = [
        read_json(run.manifest)["stages"]["improve"]
        for dtype in ("float32", "bfloat16")
        for run in [on_policy(inputs, finished, tmp_path / dtype, "rloo", few, f"judge.dtype={dtype}")]
    ]
    held = [entry["counts"]["training_state_bytes"] for entry in entries]
    model = load_reward_model(inputs / "judge", dtype=torch.float32, device="cpu").model
    assert held[0] - held[1] == 2 * sum(param.numel() for param in model.parameters())
    assert all(str(inputs / "judge") in entry["inputs"] for entry in entries)


@pytest.mark.parametrize("chat", [False, True])
def test_ready_pairs_run_through_all_of_allo_and_are_measured_by_rewards(
    inputs: Path, finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], chat: bool
) -> None:
    """Pairs as text or as conversations, in TRL's formats; nothing is sampled but for the evaluation."""
    model = tmp_path / "model"
    shutil.copytree(LAB, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    rows: list[dict[str, Any]] = []
    for pair in read_jsonl(finished.pairs, Pair):
        asked = [{"role": "user", "content": pair.prompt}]
        sides = {side: getattr(pair, side) for side in ("chosen", "rejected")}
        said = {side: [*asked, {"role": "assistant", "content": text}] for side, text in sides.items()}
        rows.append(said if chat else {"prompt": pair.prompt, **sides})
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    if chat:
        shutil.copytree(inputs, tmp_path / "inputs")
        inputs = tmp_path / "inputs"
        tiny.reward_model(inputs / "judge", template=TEMPLATE, max_position_embeddings=128)
    capsys.readouterr()
    more = [f"model={model}", f"chat={str(chat).lower()}", f"data={{pairs: {tmp_path / 'pairs.jsonl'}}}"]
    run = run_all(ranked(inputs, tmp_path / "out", *more))
    stages = ["sft", "pair", "locate", "score", "forget", "improve", "evaluate", "report"]
    assert done(capsys.readouterr().err) == stages
    assert all(isinstance(pair.prompt, list) == chat for pair in read_jsonl(run.pairs, Pair))
    evaluation = read_json(run.evaluation)
    assert evaluation["models"]["aligned"]["trained_weights"] > 0
    row = evaluation["completions"]["aligned"]["open"][0]
    reward = direct(inputs, row["prompt"], row["greedy"]["text"])
    assert row["greedy"]["reward"] == pytest.approx(reward, abs=SAME_REWARD)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["evaluate.sets={test: {task: planted_flaws, split: test}}", f"evaluate.reward_model={LAB}"],
            "evaluate.reward_model: nothing is judged by it",
        ),
        (["judge={}"], "no `answer` to judge by. Add it, name a `judge.reward_model`"),
        (["judge={}", "pair.margin=0.5"], "pair.margin is a difference of rewards: set judge.reward_model"),
        (["data={pairs: x.jsonl}", "pair.margin=0.5"], "data.pairs are taken as they are: remove it"),
        (["judge.reward_model=/no/such/model"], "/no/such/model does not exist"),
        ([f"judge.reward_model={LAB}"], "config.json names LlamaForCausalLM"),
        (["judge.pad_token=<absent>"], "judge.pad_token '<absent>' is no token"),
    ],
)
def test_what_does_not_go_together_is_refused(
    inputs: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refusal:
        check(ranked(inputs, tmp_path, *more))
    assert words in str(refusal.value)


def test_evaluation_may_have_a_reward_model_of_its_own_and_need_no_other(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    """Samples are judged by their answers here, and the open set by a reward model; both are measured."""
    data = "data={task: planted_flaws, limit: 12}"
    judge = "judge={dtype: float32, batch_size: 4}"
    own = ["score=null", "forget=null", f"evaluate.reward_model={inputs / 'judge'}"]
    run = run_all(ranked(inputs, tmp_path, data, judge, *own))
    assert {one.verifier for one in read_jsonl(run.verdicts, Verdict)} == {"final_answer"}
    ours, theirs = (read_json(one.evaluation)["models"]["start"]["sets"]["open"] for one in (run, finished))
    assert ours["rewards"] == theirs["rewards"]


def test_a_set_of_which_only_some_prompts_have_an_answer_is_refused(inputs: Path, tmp_path: Path) -> None:
    rows = [{"id": "with", "prompt": "a", "answer": "7"}, {"id": "without", "prompt": "b"}]
    write_jsonl(tmp_path / "mixed.jsonl", rows)
    sets = f"evaluate.sets={{mixed: {{file: {tmp_path / 'mixed.jsonl'}}}}}"
    with pytest.raises(UserError, match=r"sets.mixed: 1 of 2 prompts have an `answer`, and without has none"):
        check(ranked(inputs, tmp_path, sets))


def test_a_reward_model_that_judges_nothing_is_refused(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    sets = "evaluate.sets={test: {task: planted_flaws, split: test, limit: 2}}"
    with pytest.raises(UserError, match="nothing is judged by it"):
        check(ranked(inputs, tmp_path, f"data={{pairs: {finished.pairs}}}", sets))


def test_a_plan_names_the_judge_whose_memory_it_does_not_know(inputs: Path, tmp_path: Path) -> None:
    assert list(plan(ranked(inputs, tmp_path)).unplanned) == ["judge"]
