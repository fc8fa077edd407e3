"""Scorers that compare samples or models trained on them, one's own scorers, and scorers side by side."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import locate_setup
from allo.errors import UserError
from allo.files.artifacts import RunFolder, write_jsonl
from allo.files.records import Verdict, Wrong
from allo.plan import plan_stage
from allo.recipe import Recipe
from allo.recipe.scores import SCORERS
from allo.stages import locate, score
from allo.stages.check import check
from allo.tokens import contrast, scorers
from allo.tokens.contrast import side_weights, train_sides
from allo.tokens.token_credit import UNSEEN, advantages
from locate_setup import EOS, FP32, dense_logps, with_pairs
from tiny import TOKENIZER, model, pairs, weights
from tiny_run import tiny

# All but the one that needs another model: tests/rewriter/test_rewriter.py.
NAMES = [name for name in SCORERS if name != "rewriter"]
TRAINING = locate_setup.TRAINING | {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
MAX_GRAD_NORM = 1.0  # the default


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = with_pairs(tmp_path / "run")
    wrong = [
        Wrong(f"w{row}", str(row), pair["prompt"], pair["rejected"], True, pair["chosen"], [pair["chosen"]])
        for row, pair in enumerate(pairs())
    ]
    write_jsonl(folder.wrong, wrong)
    return folder


def recipe(scorer: str, *beside: str, **own: Any) -> Recipe:
    settings = {"scorer": scorer, "beside": beside, "batch_size": 4, "weights": "soft", "training": TRAINING}
    return locate_setup.recipe(
        **{"locate": {"criterion": "warmup", "training": TRAINING}, "score": settings} | own
    )


def table(run: RunFolder) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run.token_scores).to_pylist()
    return rows


# Contrastive.


def dense_side(side: str) -> dict[str, torch.Tensor]:
    """The tiny model, fine-tuned on one side with plain torch."""
    policy = model()
    optimizer = torch.optim.SGD(policy.parameters(), lr=TRAINING["learning_rate"])
    for _ in range(TRAINING["num_train_epochs"]):
        optimizer.zero_grad()
        logps = torch.cat([dense_logps(policy, pair["prompt"], pair[side]) for pair in pairs()])
        (-logps.mean()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()
    return weights(policy)


@pytest.mark.invariant(
    "Contrast is the log-ratio of two dense fine-tunings; scorers beside leave the weights alone."
)
def test_contrastive_is_the_log_ratio_of_two_models_tuned_on_either_side(run: RunFolder) -> None:
    score.run(recipe("contrastive"), run)
    ratios = []
    plus, minus = model(), model()
    plus.load_state_dict(dense_side("chosen"), strict=False)
    minus.load_state_dict(dense_side("rejected"), strict=False)
    with torch.no_grad():
        for pair in pairs():
            both = (dense_logps(each, pair["prompt"], pair["rejected"]) for each in (plus, minus))
            ratios.append(next(both) - next(both))
    scale = torch.cat(ratios).square().mean().sqrt()
    assert scale > 0.1
    by_id = {row["id"]: row["scores"] for row in table(run)}
    for row, ratio in enumerate(ratios):
        torch.testing.assert_close(torch.tensor(by_id[f"w{row}"]), (ratio / scale).sigmoid(), **FP32)


@torch.no_grad()
def test_right_confidence_asks_the_model_tuned_on_right_answers_alone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = contrast.train, []
    monkeypatch.setattr(contrast, "train", lambda trainer: calls.append(trainer) or original(trainer))
    with torch.enable_grad():
        score.run(recipe("right_confidence"), run)
        plus = model()
        plus.load_state_dict(dense_side("chosen"), strict=False)
    assert len(calls) == 1
    by_id = {row["id"]: row["scores"] for row in table(run)}
    for row, pair in enumerate(pairs()):
        expected = dense_logps(plus, pair["prompt"], pair["rejected"]).exp()
        torch.testing.assert_close(torch.tensor(by_id[f"w{row}"]), expected, **FP32)


def test_contrastive_leaves_nothing_but_the_scores(run: RunFolder) -> None:
    score.run(recipe("contrastive"), run)
    assert list(run.path.glob("05-*")) == [run.token_scores]


def test_one_side_is_in_training_at_a_time_and_a_trained_one_is_kept(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = contrast.train, []

    def killed(trainer: Any) -> Any:
        calls.append(Path(trainer.args.output_dir).name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(trainer)

    monkeypatch.setattr(contrast, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        train_sides(recipe("contrastive"), run)
    kept = side_weights(run, "chosen").read_bytes()
    assert not side_weights(run, "rejected").exists()
    train_sides(recipe("contrastive"), run)
    assert calls == ["chosen", "rejected", "rejected"]
    assert side_weights(run, "chosen").read_bytes() == kept
    other = load_file(side_weights(run, "rejected"))
    for name, tensor in dense_side("rejected").items():
        torch.testing.assert_close(other[name], tensor, **FP32)


def test_contrastive_is_planned_as_fine_tuning_under_the_same_settings(tmp_path: Path) -> None:
    training = (
        f"{{learning_rate: 1e-3, per_device_train_batch_size: {TRAINING['per_device_train_batch_size']}}}"
    )
    sources = f"{{sources: [{{task: planted_flaws}}], training: {training}}}"
    settings = ("data.limit=4", f"sft={sources}", f"score.training={training}", "score.batch_size=1")
    alone, contrasted = (
        plan_stage(tiny(tmp_path, *settings, f"score.scorer={scorer}"), "score")
        for scorer in ("confidence", "contrastive")
    )
    tuned = plan_stage(tiny(tmp_path, *settings), "sft")
    assert (contrasted.load, contrasted.bytes, contrasted.host) == (tuned.load, tuned.bytes, tuned.host)
    assert alone.total < contrasted.total


# Advantage.

A, B, C, D = range(4)


@pytest.mark.parametrize(
    ("completion", "samples", "expected"),
    [
        # Two of three samples are right and go on with B; the one that goes on with C is lost, and with it D.
        (
            [A, C, D],
            [([A, B, B], True), ([A, B, B], True), ([A, C, D], False)],
            [1, UNSEEN / (1 + UNSEEN), 1],
        ),
        # One of the four through C is right: a quarter against a half before it.
        (
            [A, C, B],
            [([A, B], True)] * 3 + [([A, B], False)] + [([A, C, D], True)] + [([A, C, B], False)] * 3,
            [1, (1 / (4 / 8) + UNSEEN) / (4 + UNSEEN), UNSEEN / (3 + UNSEEN)],
        ),
        # If no sample is right, no token is to blame.
        ([A, B], [([A, B], False), ([A, C], False)], [1, 1]),
        ([A, B], [], [1, 1]),
        # A right sample that is a mere beginning of the completion ends there.
        ([A, B], [([A], True), ([A, B], False)], [1, UNSEEN / (1 + UNSEEN)]),
    ],
)
def test_advantage_is_the_share_of_hope_that_a_token_keeps(
    completion: list[int], samples: list[tuple[list[int], bool]], expected: list[float]
) -> None:
    assert advantages(completion, samples) == pytest.approx(expected)


def test_advantage_reads_every_judged_sample_and_of_ready_pairs_both_sides(run: RunFolder) -> None:
    score.run(recipe("advantage"), run)
    ids = {row["id"]: row["token_ids"] for row in table(run)}
    sampled = []
    for row, pair in enumerate(pairs()):
        right = [*TOKENIZER(pair["chosen"], add_special_tokens=False).input_ids, EOS]
        expected = advantages(ids[f"w{row}"], [(right, True), (ids[f"w{row}"], False)])
        assert {r["id"]: r["scores"] for r in table(run)}[f"w{row}"] == pytest.approx(expected)
        texts = [pair["chosen"]] * 3 + [pair["rejected"]]
        sampled += [Verdict(str(row), i, t, True, i < 3, 0.0, None, "v") for i, t in enumerate(texts)]
    write_jsonl(run.verdicts, sampled)
    score.run(recipe("advantage"), run)
    by_id = {row["id"]: row["scores"] for row in table(run)}
    for row, pair in enumerate(pairs()):
        right = [*TOKENIZER(pair["chosen"], add_special_tokens=False).input_ids, EOS]
        expected = advantages(ids[f"w{row}"], [(right, True)] * 3 + [(ids[f"w{row}"], False)])
        assert by_id[f"w{row}"] == pytest.approx(expected)


# One's own.


def own(folder: Path, body: str) -> str:
    file = folder / "mine.py"
    file.write_text(f"def mine(rows, context):\n    return {body}\n")
    return f"{file}:mine"


def test_a_function_of_ones_own_scores(run: RunFolder, tmp_path: Path) -> None:
    name = own(tmp_path, "[[1 / (1 + n) for n in range(len(row.tokens.completion_ids))] for row in rows]")
    score.run(recipe(name), run)
    for row in table(run):
        expected = [1 / (1 + n) for n in range(len(row["token_ids"]))]
        assert row["scores"] == pytest.approx(expected)
        assert row["weights"] == pytest.approx([1 - number for number in expected])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[]", r"gave scores of 0 completions for 4"),
        ("[[0.5] for row in rows]", r"gave 1 scores for the \d+ tokens of completion w\d+"),
        ("[[float('nan')] * len(row.tokens.completion_ids) for row in rows]", r"gave the score nan"),
        (
            "[[-0.1] * len(row.tokens.completion_ids) for row in rows]",
            r"gave the score -0\.1 .* from 0 \(wrong\)",
        ),
        ("[[float('inf')] * len(row.tokens.completion_ids) for row in rows]", r"gave the score inf"),
        ("None", "returned NoneType, not a list of numbers for each row"),
        ("0.5", "returned float, not a list"),
        ("[0.5 for row in rows]", "returned list, not a list of numbers"),
        (
            "[['low'] * len(row.tokens.completion_ids) for row in rows]",
            "returned list, not a list of numbers",
        ),
        ("[[None] * len(row.tokens.completion_ids) for row in rows]", "returned list, not a list of numbers"),
        ("rows[0].nothing", r"fails in line 2: AttributeError"),
        ("1 / 0", r"fails in line 2: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_its_scores_is_said(run: RunFolder, tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"score\.beside: .*mine\.py:mine {said}"):
        score.run(recipe("uniform", own(tmp_path, body)), run)
    assert not run.token_scores.exists()


def test_a_missing_function_is_found_before_the_first_stage(tmp_path: Path) -> None:
    name = own(tmp_path, "[]").replace(":mine", ":yours")
    with pytest.raises(UserError, match=r"score\.scorer: .*no function 'yours'; it has mine"):
        check(tiny(tmp_path, f"score.scorer={name}"))


# Side by side.


@pytest.mark.invariant(
    "Contrast is the log-ratio of two dense fine-tunings; scorers beside leave the weights alone."
)
def test_scorers_beside_leave_the_weights_alone_and_add_their_own_columns(run: RunFolder) -> None:
    names = [name for name in NAMES if name != "confidence"]
    alone = {}
    locate.run(recipe("implicit"), run)
    for name in NAMES:
        score.run(recipe(name), run)
        alone[name] = {row["id"]: row for row in table(run)}
    score.run(recipe("confidence", *names), run)
    assert pq.read_schema(run.token_scores).metadata[b"scorer"] == b"confidence"
    for row in table(run):
        for column in ("scores", "weights"):
            assert row[column] == alone["confidence"][row["id"]][column]
        for name in names:
            assert row[f"scores/{name}"] == alone[name][row["id"]]["scores"], name


def test_a_kill_between_two_scorers_costs_neither(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    score.run(recipe("confidence", "edit", "advantage"), run)
    unbroken = run.token_scores.read_bytes()
    run.token_scores.unlink()
    calls: list[str] = []

    def counted(name: str, limit: float) -> Any:
        original = getattr(scorers, name)

        def scorer(rows: Any, context: Any) -> Any:
            if calls.count(name) == limit:
                raise KeyboardInterrupt
            calls.append(name)
            return original(rows, context)

        return scorer

    with monkeypatch.context() as patch:
        patch.setattr(scorers, "confidence", counted("confidence", math.inf))
        patch.setattr(scorers, "edit", counted("edit", 1))
        with pytest.raises(KeyboardInterrupt):
            score.run(recipe("confidence", "edit", "advantage"), run)
    assert calls == ["confidence"] * 4 + ["edit"]
    for name in ("confidence", "edit", "advantage"):
        monkeypatch.setattr(scorers, name, counted(name, math.inf))
    score.run(recipe("confidence", "edit", "advantage"), run)
    assert calls == ["confidence"] * 4 + ["edit"] * 4 + ["advantage"] * 4
    assert run.token_scores.read_bytes() == unbroken


def test_a_scorer_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'edit' is named twice"):
        recipe("edit", "edit")


def test_a_scorer_beside_that_reads_the_warm_up_needs_one() -> None:
    with pytest.raises(ValueError, match="'implicit' reads a warm-up"):
        recipe("edit", "implicit", locate={"criterion": "gradient"})


def test_the_sides_that_a_recipe_trains_are_those_that_its_scorers_ask() -> None:
    for name in NAMES:
        asked = [side for side in SCORERS[name].weights if side != "warmup"]
        assert recipe(name).score.sides == asked, name
