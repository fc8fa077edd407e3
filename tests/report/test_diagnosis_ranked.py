"""A stage's faults, ranked: the main one in full, at most one more in a sentence, and the others by name."""

from dataclasses import replace
from itertools import permutations

import pytest

from allo.files.evaluation import Change, Evaluation, HeldOut, ModelResult, Rate
from allo.report import diagnosis
from allo.report.diagnosis import DIAGNOSES, EVALUATED, Reading, read_run, read_stage
from allo.report.run_view import Manifest, RunView
from curves_setup import RECIPE, forgetting, improving, recipe

NAMES = [each.name for each in DIAGNOSES]


def read(monkeypatch: pytest.MonkeyPatch, *explains: tuple[str, ...]) -> Reading:
    """Read a stage with a fault `a`, `b`, `c` ... for each argument, which names those that the fault explains."""
    table = [
        replace(
            DIAGNOSES[0], name=name, stages=("improve",), find=lambda evidence: {}, happened=f"{name} happened.",
            meaning="It means much.", changes=(), explains=others,
        )
        for name, others in zip("abcdef", explains, strict=False)
    ]  # fmt: skip
    monkeypatch.setattr(diagnosis, "DIAGNOSES", tuple(table))
    reading = read_stage("improve", improving(), recipe())
    assert reading is not None and [each.diagnosis for each in reading.findings] == [
        each.name for each in table
    ]
    return reading


MAIN, SEEN = "a happened. It means much.", "Also seen, perhaps from the same cause: "


@pytest.mark.parametrize(
    ("explains", "texts"),
    [
        ([()], [MAIN]),
        ([(), ()], [MAIN, "Also: b happened."]),
        ([("b",), ()], [MAIN, f"{SEEN}b."]),
        ([("b",), (), ()], [MAIN, "Also: c happened.", f"{SEEN}b."]),
        ([(), ("c",), (), ()], [MAIN, "Also: b happened.", f"{SEEN}c, d."]),
        ([("b", "c"), (), (), (), ()], [MAIN, "Also: d happened.", f"{SEEN}b, c, e."]),
    ],
)
def test_one_fault_is_told_in_full_one_in_a_sentence_and_the_others_by_name(
    explains: list[tuple[str, ...]], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = read(monkeypatch, *explains)
    assert list(reading.sentences[1:]) == texts
    assert [each.diagnosis for each in reading.told] == [
        text.removeprefix("Also: ")[0] for text in texts if not text.startswith(SEEN)
    ]


def test_a_fault_explains_only_what_stands_after_it_and_is_in_one_of_its_stages() -> None:
    by_name = {each.name: each for each in DIAGNOSES}
    for each in DIAGNOSES:
        for name in each.explains:
            assert NAMES.index(name) > NAMES.index(each.name)
            assert set(by_name[name].stages) & set(each.stages)
    for one, other in permutations(DIAGNOSES, 2):
        assert not (one.name in other.explains and other.name in one.explains)


def test_a_rising_loss_explains_that_chosen_answers_fell() -> None:
    steps = [step | {"loss": 0.7 + 0.02 * i} for i, step in enumerate(improving(chosen=-5.3, rejected=-80))]
    reading = read_stage("improve", steps, recipe())
    assert reading is not None
    _, main, others = reading.sentences
    assert main.startswith("The loss rose from 0.73 to 1.45")
    assert others == f"{SEEN}chosen answers fell, rejected answers fell far."


def test_forgetting_that_did_nothing_explains_a_bound_that_it_missed() -> None:
    reading = read_stage("forget", forgetting(change=-0.01), recipe(forget__until=0.1))
    assert reading is not None
    _, main, others = reading.sentences
    assert main.startswith("The model believes the tokens marked as wrong as it did")
    assert others == f"{SEEN}until not reached."


def test_two_faults_that_do_not_explain_each_other_are_both_told() -> None:
    """The benchmark plants either one, and the other follows in some runs."""
    reading = read_stage("improve", improving(chosen=-5.3, rejected=-80), recipe())
    assert reading is not None
    assert [each.diagnosis for each in reading.told] == ["chosen answers fell", "rejected answers fell far"]
    assert reading.sentences[2].startswith("Also: Rejected answers lost")
    assert "improve.beta" not in reading.sentences[2] and "improve.beta" in reading.findings[1].text


@pytest.mark.parametrize("in_training", [True, False])
def test_an_evaluation_does_not_explain_again_what_training_explained(in_training: bool) -> None:
    def of(value: float) -> Rate:
        return Rate(value, value - 1, value + 0.5)

    fell, rejected = Change(of(-1.2), of(-1.2)), Change(of(-2.0), of(-2.0))
    models = {
        "start": ModelResult("start", {}, held_out=HeldOut(9, 9, of(0.5), chosen_logp=of(-3.0))),
        "aligned": ModelResult(
            "aligned", {}, held_out=HeldOut(9, 9, of(0.5), chosen=fell, rejected=rejected)
        ),
    }
    steps = improving(chosen=-5.3, rejected=-14.0) if in_training else improving()
    run = RunView(
        "mine", Evaluation(1, models), Manifest(1, "mine"), settings=RECIPE, curves={"improve": steps}
    )
    *_, evaluated = read_run(run)
    assert evaluated.stage == EVALUATED and [each.diagnosis for each in evaluated.told] == [
        "chosen answers fell"
    ]
    (text,) = evaluated.sentences
    assert text.startswith(
        "Chosen answers on held-out rows became less likely: on average each lost 1.20 nats"
    )
    assert ("The loss only asks for a wider margin" in text) is not in_training
