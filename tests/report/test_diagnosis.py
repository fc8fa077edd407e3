"""The diagnosis of curves: each planted fault is named with its numbers, and good curves are not blamed."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allo.files.evaluation import Change, Divergence, HeldOut, ModelResult, Rate, SetResult
from allo.report.diagnosis import DIAGNOSES, EVALUATED, Evidence, Reading, read_stage
from allo.report.run_view import Manifest, StageRecord
from curves_setup import RECIPE, Steps, forgetting, improving, recipe, way


def faults(reading: Reading | None) -> list[str]:
    assert reading is not None
    return [finding.diagnosis for finding in reading.findings]


def improved(steps: Steps, **changes: Any) -> Reading:
    reading = read_stage("improve", steps, recipe(**changes))
    assert reading is not None
    return reading


def forgot(steps: Steps, **changes: Any) -> Reading:
    reading = read_stage("forget", steps, recipe(**changes))
    assert reading is not None
    return reading


def jumped(steps: Steps, *, at: int, times: float, last: int = 1) -> Steps:
    return [
        step | {"loss": step["loss"] * (times if at <= i < at + last else 1)} for i, step in enumerate(steps)
    ]


def evaluated(*, tokens: float = 24.2, kl: float = 0.01, **changes: Any) -> list[str]:
    before = ModelResult("SFT", {"test": SetResult(40, mean_tokens=23.5), "other": SetResult(40)})
    after = ModelResult(
        "aligned", {"test": SetResult(40, mean_tokens=tokens), "other": SetResult(40, mean_tokens=9.0)},
        kl=Divergence("plain", kl),
    )  # fmt: skip
    evidence = Evidence(EVALUATED, (), recipe(**changes), before=before, after=after)
    return [found.text for each in DIAGNOSES if (found := each.finding(evidence))]


@pytest.mark.parametrize(
    ("fall", "high", "found"),
    [
        (-1.2, -0.4, True),
        (-1.2, 0.1, False),  # may be chance
        (-0.4, -0.3, False),  # no larger than usual
        (0.3, 0.6, False),
    ],
)
def test_a_fall_on_held_out_pairs_is_named_though_training_shows_none(
    fall: float, high: float, found: bool
) -> None:
    def rate(value: float, most: float = 0.0) -> Rate:
        return Rate(value, value - 1, most)

    start = HeldOut(9, 9, rate(0.5), chosen_logp=rate(-3.0))
    end = HeldOut(
        9, 9, rate(0.5), chosen=Change(rate(fall, high), rate(fall)), rejected=Change(rate(-2.0), rate(-2.0))
    )
    before, after = ModelResult("start", {}, held_out=start), ModelResult("aligned", {}, held_out=end)
    evidence = Evidence(EVALUATED, (), recipe(), before=before, after=after)
    texts = [text.text for each in DIAGNOSES if (text := each.finding(evidence))]
    assert len(texts) == found
    for part in ("Chosen answers on held-out rows", "each lost 1.20 nats", "a rejected one lost 2.00 nats"):
        assert all(part in text for text in texts)
    assert all("lower forget.training.learning_rate (now" in text for text in texts)


@pytest.mark.parametrize(
    ("reading", "name", "parts"),
    [
        (
            improved(improving(chosen=0.01, rejected=-0.02)),
            "nothing moved",
            ["after 40 steps", "0.030 nats, 3.0% in", "raise improve.training.learning_rate (now 0.0002)"],
        ),
        (
            improved(improving(chosen=-5.3, rejected=-14.0)),
            "chosen answers fell",
            ["lost 5.2", "(from -0.6; up to 0.50 is usual)", "0.5%", "lost 14", "raise improve.anchor (now 0)",
             "lower improve.density (now 0.1)"],
        ),
        (
            improved(improving(chosen=0.5, rejected=-80)),
            "rejected answers fell far",
            ["lost 80 nats", "beta 0.1", "reward of -8.0", "raise improve.beta (now 0.1)"],
        ),
        (improved(improving(told=1.0, soon=0.02)), "accuracy saturated", ["100.0%", "a tenth of the 40 steps"]),
        (forgot(forgetting(change=-0.01)), "forgot too little", ["a change of 0.010 nats, below 0.050", "raise forget.training.learning_rate"]),
        (forgot(forgetting(change=-6.0)), "forgot too much", ["lost 5.9", "0.3%", "set forget.until to 0.5, lower", "lower forget.density (now 0.05)"]),
        (
            forgot(forgetting(change=-0.3), forget__until=0.1),
            "until not reached",
            ["probability of 0.67", "forget.until 0.1", "raise forget.training.num_train_epochs (now 1)"],
        ),
        (
            improved(jumped(improving(), at=25, times=4)),
            "loss jumped",
            ["At step 26", "to 2.33, from 0.597", "raise improve.training.warmup_steps (now 0.1)"],
        ),
        (
            improved([s | {"loss": 0.7 + 0.02 * i} for i, s in enumerate(improving())]),
            "loss rose",
            ["from 0.73 to 1.45", "lower improve.training.learning_rate (now 0.0002)"],
        ),
        (
            improved([s | {"completions/mean_length": 40.0 + i} for i, s in enumerate(improving())]),
            "length changed",
            ["sampled in training became longer: 77.5 tokens", "41.5 at the start", "+86.7"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_planted_fault_is_named_with_its_numbers_and_keys(
    reading: Reading, name: str, parts: list[str]
) -> None:
    assert faults(reading) == [name]
    text = reading.findings[0].text.replace("\u00a0", " ").replace("\u2212", "-")
    for part in parts:
        assert part.lower() in text.lower(), (part, text)


def test_faults_of_the_evaluation_are_named() -> None:
    (longer,) = evaluated(tokens=35.0)
    assert "on test became longer: 35.0 tokens on average, 23.5 at the start" in longer
    (shorter,) = evaluated(tokens=12.0)
    assert "became shorter" in shorter and "\u221248.9" in shorter
    (far,) = evaluated(kl=0.25)
    assert "0.25 nats a token on plain" in far and "forget.training.learning_rate (now 0.0005)" in far
    assert evaluated() == evaluated(tokens=20.0, kl=0.09) == []


@given(
    beta=st.floats(0.01, 2.0),
    chosen=st.floats(-0.45, 3.0),
    rejected=st.floats(-6.0, -1.5),
    factor=st.floats(1e-3, 1e3),
    num=st.integers(8, 200),
    noise=st.lists(st.floats(-0.2, 0.2), min_size=7, max_size=40),
    told=st.floats(0.6, 0.98),
)
@settings(max_examples=100, deadline=None)
@pytest.mark.invariant(
    "Good curves get no diagnosis, whatever beta, the loss's scale and the noise of batches."
)
def test_good_curves_are_not_blamed(
    beta: float, chosen: float, rejected: float, factor: float, num: int, noise: list[float], told: float
) -> None:
    if beta * (chosen - rejected) > 4:
        rejected = chosen - 4 / beta  # a margin that the loss still asks for
    steps = improving(
        chosen=chosen, rejected=rejected, beta=beta, factor=factor, num=num, noise=noise, told=told
    )
    reading = improved(steps, improve__beta=beta)
    margin = chosen - rejected
    assert faults(reading) in ([], ["nothing moved"] if margin < 0.12 else [])
    assert "Nothing in the curves is unusual." in reading.sentences or margin < 0.12


@given(change=st.floats(-3.9, -0.08), believed=st.floats(0.05, 1.0), num=st.integers(6, 200))
@settings(max_examples=50, deadline=None)
def test_good_forgetting_is_not_blamed(change: float, believed: float, num: int) -> None:
    assert faults(forgot(forgetting(change=change, believed=believed, num=num))) == []


@given(scale=st.floats(1e-2, 1e2))
@settings(max_examples=30, deadline=None)
def test_a_fault_is_the_same_in_nats_at_every_beta(scale: float) -> None:
    """Beta and the rewards scale together; the nats do not."""
    texts = []
    for beta in (0.1, 0.1 * scale):
        steps = improving(chosen=-5.0, rejected=-5.5, beta=beta)
        texts.append(improved(steps, improve__beta=beta).findings[0].text)
    assert texts[0] == texts[1]


def test_a_usual_fall_of_the_chosen_answers_is_left_alone() -> None:
    assert faults(improved(improving(chosen=-0.45, rejected=-6))) == []
    long = improving(chosen=-9.0, rejected=-30, likelihood=-250.0)
    assert faults(improved(long)) == []  # 4% of a long answer's log-likelihood
    assert faults(improved(improving(chosen=-40.0, rejected=-60, likelihood=-250.0))) == [
        "chosen answers fell"
    ]


def test_a_fall_is_compared_with_the_same_answers_not_with_other_batches() -> None:
    """The log-likelihoods of batches differ by more than any change; rewards are of the same answers."""
    steps = improving(chosen=0.3, rejected=-2)
    drifted = [step | {"logps/chosen": -1.0 - i} for i, step in enumerate(steps)]
    assert faults(improved(drifted)) == []


def test_noisy_losses_have_no_jumps_and_two_high_steps_are_one_fault() -> None:
    wild = [0.0, 0.9, -0.6, 0.5, -0.8, 0.7, -0.5, 0.2]
    assert faults(improved(improving(noise=wild))) == []
    assert faults(improved(jumped(improving(), at=20, times=5, last=2))) == ["loss jumped"]


def test_a_last_step_of_few_rows_is_not_the_end() -> None:
    """The laboratory's own: 330 rows in steps of 16 end with one of 10, by chance hard ones."""
    losses = [.178, .271, .117, .407, .182, .136, .080, .114, .015, .040, .058, .172, .012, .146, .049, .020, .019, .083,
              .093, .034, .842]  # fmt: skip
    steps = [step | {"loss": loss} for step, loss in zip(forgetting(change=-1.0), losses, strict=True)]
    assert faults(forgot(steps)) == []
    sft = read_stage("sft", [{"step": step["step"], "loss": step["loss"]} for step in steps], RECIPE)
    assert sft is not None and sft.sentences[0] == "In 21 steps, the loss went from 0.178 to 0.093."


def test_a_small_jump_and_one_at_the_very_start_are_left_alone() -> None:
    assert faults(improved(jumped(improving(), at=25, times=1.6))) == []
    assert faults(improved(jumped(improving(), at=0, times=3))) == []


def test_pairs_in_order_later_or_in_few_steps_are_no_fault() -> None:
    assert faults(improved(improving(told=1.0, soon=0.5))) == []
    assert faults(improved(improving(told=1.0, soon=0.01, num=12))) == []


def test_forgetting_to_a_bound_of_the_recipe_is_not_too_much() -> None:
    steps = forgetting(change=-6.0)
    assert faults(forgot(steps, forget__until=0.2)) == []
    assert faults(forgot(forgetting(change=-0.3)[:9], forget__until=0.5)) == []  # it stopped within the epoch


def test_forgetting_that_reaches_unmarked_tokens_is_named() -> None:
    """Answers of 22 tokens, 11 of them marked, as in the laboratory."""
    counts = {"completions": 650, "tokens": 14_300, "weighted": 7_150, "dropped": 0}

    def with_whole(whole: float, *, score: str = "score", counts: dict[str, object] = counts) -> list[str]:
        steps = [
            s | {"rewards/rejected": 0.1 * whole * way((s["step"] - 1) / 20)} for s in forgetting(change=-0.4)
        ]
        manifest = Manifest(1, "mine", stages={score: StageRecord(counts=counts)})
        return faults(read_stage("forget", steps, RECIPE, manifest))

    assert with_whole(-4.4) == with_whole(-3.7) == []  # the marked tokens' own loss; others gain
    assert with_whole(-12.0) == ["forgetting spread"]
    assert with_whole(-12.0, score="round-1/score") == []  # another stage's counts
    for damaged in ({}, counts | {"tokens": "many"}, counts | {"tokens": 0}, counts | {"weighted": 14_300}):
        assert with_whole(-12.0, counts=damaged) == []


def test_a_loss_without_a_reference_is_read_by_its_probabilities() -> None:
    def bare(change: float) -> Steps:
        return [
            {k: v for k, v in s.items() if not k.startswith("logratios")} for s in forgetting(change=change)
        ]

    assert faults(forgot(bare(-0.01), forget__loss="unlikelihood")) == ["forgot too little"]
    good = forgot(bare(-1.3), forget__loss="unlikelihood")
    assert (
        good.sentences[0]
        == "In 21 steps, the mean probability of tokens marked as wrong went from 0.79 to 0.25."
    )
    assert faults(good) == []
    assert faults(forgot(bare(-6.0), forget__loss="unlikelihood")) == []  # that is its aim


@pytest.mark.parametrize("loss", ["simpo", "mine.py:loss"])
def test_rewards_that_are_no_changes_are_not_read_as_changes(loss: str) -> None:
    steps = [
        s | {"rewards/chosen": -1.5, "rewards/rejected": -1.52, "rewards/margins": 0.02} for s in improving()
    ]
    assert faults(improved(steps, improve__loss=loss)) == []


def test_only_keys_that_the_recipe_has_are_advised() -> None:
    steps = improving(chosen=-5.3, rejected=-14.0)
    (whole,) = improved(steps, locate=None, improve__density=1.0).findings
    assert "density" not in whole.text and "improve.anchor" in whole.text
    (adapter,) = improved(steps, improve__trainer="lora").findings
    assert "anchor" not in adapter.text and "density" not in adapter.text
    assert "lower improve.training.learning_rate" in adapter.text.lower()
    (length,) = evaluated(tokens=40.0, forget=None)
    assert "forget." not in length
    (bare,) = [f for r in [read_stage("improve", steps, {"improve": {"beta": 0.1}})] if r for f in r.findings]
    assert "(now" not in bare.text


def test_damaged_missing_and_short_records_are_no_faults() -> None:
    steps = improving(chosen=-5.3, rejected=-14.0)
    assert faults(read_stage("improve", steps, {})) == []  # no beta, so no nats
    assert faults(improved(steps, improve__beta="much")) == []
    assert improved(steps[:3]).sentences == ("A diagnosis needs 4 logged steps; there are 3.",)
    assert faults(improved([{"step": 1.0}] * 9)) == []
    assert faults(improved([s | {"rewards/chosen": math.nan} for s in steps])) == []
    assert improved([]).sentences == ("A diagnosis needs 4 logged steps; there are 0.",)
    assert improved([], improve__training__logging_steps=50).sentences == (
        "A diagnosis needs 4 logged steps; there are 0. Lower improve.training.logging_steps (now 50).",
    )
    assert read_stage("warmup", steps, RECIPE) is None


def test_losses_of_sampling_trainers_are_not_progress() -> None:
    steps = [{"step": i + 1, "loss": 0.01 * (1 + i)} for i in range(30)]
    assert faults(improved(steps)) == ["loss rose"]
    assert faults(improved(steps, improve__trainer="grpo")) == []


def test_a_good_stage_says_what_happened_in_one_sentence() -> None:
    assert improved(improving()).sentences == (
        "In 40 steps, chosen answers gained 0.20 nats each and rejected ones lost 2.50 nats; reward accuracy "
        "95.0% (median of the last 4 logged).",
        "Nothing in the curves is unusual.",
    )
    assert (
        forgot(forgetting()).sentences[0]
        == "In 21 steps, the tokens marked as wrong lost 0.20 nats each (median of the last 3 logged)."
    )
    sft = read_stage("sft", [{"step": i + 1, "loss": 0.5 - 0.01 * i} for i in range(20)], RECIPE)
    assert sft is not None and sft.sentences[0] == "In 20 steps, the loss went from 0.49 to 0.32."


def test_a_rounds_stage_is_read_as_its_stage() -> None:
    reading = read_stage("round-2/improve", improving(chosen=-5.3, rejected=-14.0), RECIPE)
    assert reading is not None and reading.stage == "round-2/improve"
    assert "improve.anchor" in reading.findings[0].text and "round-2" not in reading.findings[0].text


def test_a_start_without_answers_is_not_compared() -> None:
    model = ModelResult("a", {"test": SetResult(4, mean_tokens=0.0)})
    for before in (None, model, replace(model, sets={})):
        evidence = Evidence(
            EVALUATED,
            (),
            RECIPE,
            before=before,
            after=replace(model, sets={"test": SetResult(4, mean_tokens=9)}),
        )
        assert [each.finding(evidence) for each in DIAGNOSES] == [None] * len(DIAGNOSES)
