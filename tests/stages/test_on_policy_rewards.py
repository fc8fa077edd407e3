"""Training on the rewards of fresh samples, ready pairs measured by rewards, and what does not go together."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json, read_jsonl, write_jsonl
from allo.files.records import Completion, Pair, Verdict
from allo.models.reward_model import RewardModel, load_reward_model
from allo.pipeline import run_all
from allo.plan import plan
from allo.stages.check import check
from reward_setup import SAME_REWARD, TEMPLATE, direct, done, problems, ranked
from tiny_run import LAB


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


needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trains through TRL; install the extra")


def on_policy(inputs: Path, finished: RunFolder, out: Path, trainer: str, *more: str) -> RunFolder:
    """The finished run's samples, improved by a method that samples by itself."""
    shutil.copytree(finished.path, out / "tiny")
    own = ["forget=null", "score=null", "locate=null", "improve.density=1.0", f"improve.trainer={trainer}"]
    return run_all(ranked(inputs, out, *own, "improve.training.logging_steps=1", *more), until="improve")


@pytest.mark.invariant(
    "Each round ranks fresh samples of the model that it begins with; what RLOO and GRPO sample has the reward that the judge stage gives."
)
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


# Eight samples a prompt at a rate at which the tiny model learns.
LEARNS = (
    *("sample.num_generations=8", "improve.training.per_device_train_batch_size=32"),
    *("improve.training.learning_rate=5e-4", "improve.beta=0.01"),
)


@pytest.mark.slow  # `test_baselines.py::test_rewards_rise` holds the same of rewards by the right answer
@needs_trl
def test_the_rewards_of_a_reward_model_rise(inputs: Path, finished: RunFolder, tmp_path: Path) -> None:
    run = on_policy(inputs, finished, tmp_path, "rloo", *LEARNS, "improve.training.max_steps=12")
    rewards = [json.loads(row)["reward"] for row in (run.improve / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 4 * 0.1


@needs_trl
@pytest.mark.slow  # test_baselines.py holds it of rewards by the right answer
def test_a_seed_makes_training_on_a_reward_model_repeatable(
    inputs: Path, finished: RunFolder, tmp_path: Path
) -> None:
    few = (*LEARNS, "improve.training.max_steps=2")
    one, two = (on_policy(inputs, finished, tmp_path / name, "rloo", *few) for name in ("one", "two"))
    assert all(
        (one.improve / name).read_bytes() == (two.improve / name).read_bytes()
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


@pytest.mark.invariant("Ready pairs run whole, as text or chat.")
@pytest.mark.parametrize("chat", [pytest.param(False, marks=pytest.mark.slow), True])
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
    alone = ("forget=null", "score=null", "locate=null", "improve.density=1.0")
    assert list(plan(ranked(inputs, tmp_path, *alone)).unplanned) == ["judge"]
