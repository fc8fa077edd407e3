"""The keys that a diagnosis advises are those that decide in this recipe."""

import pytest

from allo.report.diagnosis import read_stage
from curves_setup import Steps, forgetting, improving, recipe


def advice(stage: str, steps: Steps, **changes: object) -> str:
    reading = read_stage(stage, steps, recipe(**changes))
    assert reading is not None and reading.findings
    return " ".join(finding.text for finding in reading.findings)


STILL, SMALL = improving(chosen=0.01, rejected=-0.02), forgetting(change=-0.01)


@pytest.mark.parametrize(
    ("stage", "steps"), [("improve", STILL), ("forget", SMALL)], ids=["improve", "forget"]
)
def test_a_number_of_steps_is_advised_where_it_overrides_the_epochs(stage: str, steps: Steps) -> None:
    text = advice(stage, steps, **{f"{stage}__training__max_steps": 8})
    assert f"{stage}.training.max_steps (now 8)" in text and "num_train_epochs" not in text


@pytest.mark.parametrize("limit", [-1, 0, None, "many", True])
def test_epochs_are_advised_where_no_number_of_steps_is_set(limit: object) -> None:
    text = advice("improve", STILL, improve__training__max_steps=limit)
    assert "improve.training.num_train_epochs (now 1)" in text and "max_steps" not in text


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({"max_steps": 40}, True),  # step 21 of 40
        ({"max_steps": 21}, False),
        ({"max_steps": 40, "num_train_epochs": 1.0}, True),
        ({"max_steps": -1, "num_train_epochs": 2.0}, True),
        ({"max_steps": -1, "num_train_epochs": 1.0}, False),
        ({"num_train_epochs": 3.0}, True),
    ],
)
def test_forgetting_that_stopped_before_its_last_step_reached_its_bound(
    changes: dict[str, float], stopped: bool
) -> None:
    """The last record is a mean over `logging_steps`, which may still be above the bound."""
    settings = {f"forget__training__{key}": value for key, value in changes.items()}
    reading = read_stage("forget", forgetting(change=-0.3), recipe(forget__until=0.5, **settings))
    assert reading is not None
    assert bool(reading.findings) is not stopped


@pytest.mark.parametrize(
    ("believed", "faults"),
    [
        ([0.117, 0.143, 0.149, 0.08], []),  # the laboratory's: batches differ by more than four steps change
        ([0.17, 0.11, 0.17, 0.16, 0.079], []),
        ([0.117, 0.143, 0.149, 0.12], ["forgot too little", "until not reached"]),
    ],
)
def test_forgetting_that_reached_its_bound_in_a_few_steps_is_not_too_little(
    believed: list[float], faults: list[str]
) -> None:
    steps = [
        {"step": i + 1, "epoch": 0.05 * (i + 1), "loss": 0.1, "probabilities/forgotten": value}
        for i, value in enumerate(believed)
    ]
    if faults:  # no step was left
        steps[-1]["epoch"] = 1.0
    reading = read_stage("forget", steps, recipe(forget__until=0.1, forget__loss="unlikelihood"))
    assert reading is not None
    assert [finding.diagnosis for finding in reading.findings] == faults


@pytest.mark.parametrize(("believed", "bound"), [(0.9, "0.5"), (0.06, "0.03"), (0.004, "0.002")])
def test_a_bound_is_advised_below_where_the_run_began(believed: float, bound: str) -> None:
    """SmolLM2 gives its marked tokens 0.06 at the start: at a bound of 0.1, forgetting ends at its first step."""
    text = advice("forget", forgetting(change=-6.0, believed=believed))
    assert f"Set forget.until to {bound}," in text


def test_a_small_change_of_the_marked_tokens_has_one_figure() -> None:
    """The few steps of a first try: the curve's last point is another, and the sentence says which ones it has."""
    steps = [
        {"step": step, "loss": 0.6, "logratios/forgotten": change}
        for step, change in enumerate((0.0, 0.0, -0.0078, -0.0221), start=1)
    ]
    reading = read_stage("forget", steps, {"forget": {"beta": 0.1, "training": {"learning_rate": 2e-5}}})
    assert reading is not None
    assert reading.sentences[0] == (
        "In 4 steps, the tokens marked as wrong lost 0.008 nats each (median of the last 3 logged)."
    )
    assert "a change of 0.008 nats, below 0.050" in reading.sentences[1]
