"""Changes in likelihood in the report: before and after with intervals on held-out rows, and in training."""

import math
from dataclasses import replace

import pytest

from allo.files.evaluation import Change, Evaluation, HeldOut, HeldOutFeedback, ModelResult, Rate
from allo.report.likelihood import likelihood_tables
from allo.report.page import render
from allo.report.run_view import Manifest, RunView


def rate(value: float) -> Rate:
    return Rate(value, value - 0.25, value + 0.25)


def change(value: float) -> Change:
    return Change(rate(value), rate(value / 10))


RIGHT = rate(0.5)
START = HeldOut(40, 38, RIGHT, chosen_logp=rate(-14.5), rejected_logp=rate(-50.5))
END = replace(
    START, chosen_logp=rate(-14.0), rejected_logp=rate(-52.5), chosen=change(0.5), rejected=change(-2.0)
)
STEPS = [
    {
        "step": step, "loss": 0.6, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.2 * step,
        "logps/chosen": -10 + step, "logps/rejected": -30 - 2 * step,
    }
    for step in range(4)
]  # fmt: skip


def run(start: ModelResult, end: ModelResult, *, loss: str = "dpo") -> RunView:
    models = {"start": start, "aligned": end}
    settings = {"improve": {"beta": 0.1, "loss": loss}}
    return RunView("mine", Evaluation(1, models), Manifest(1, "mine"), settings=settings)


PAIRS = run(ModelResult("SFT", {}, held_out=START), ModelResult("aligned", {}, held_out=END))


def cells(seen: RunView) -> dict[str, dict[str, tuple[str, str]]]:
    """Return the table by row and column: the text and its note."""
    (table,) = likelihood_tables([seen])
    return {
        row[0].text: {name: (cell.text, cell.note) for name, cell in zip(table.columns, row, strict=True)}
        for row in table.rows
    }


def test_held_out_answers_have_before_after_and_change_with_intervals() -> None:
    found = cells(PAIRS)
    assert list(found) == ["chosen, held out", "rejected, held out"]
    chosen, rejected = found.values()
    assert chosen["Before"] == ("−14.50", "[−14.75,\u00a0−14.25]")
    assert chosen["After"] == ("−14.00", "[−14.25,\u00a0−13.75]")
    assert chosen["Change"] == ("0.500", "[0.250,\u00a00.750]")
    assert chosen["Change a token"] == ("0.050", "[−0.200,\u00a00.300]")
    assert float(chosen["Times as likely"][0]) == pytest.approx(math.exp(0.5), rel=0.01)
    assert rejected["Change"][0] == "−2.000" and rejected["Times as likely"][0] == "0.135"


def test_labelled_completions_have_the_same() -> None:
    start = HeldOutFeedback(20, 20, 30, RIGHT, good_logp=rate(-9.0), bad_logp=rate(-8.0))
    end = replace(start, good_logp=rate(-8.0), bad_logp=rate(-9.0), good=change(1.0), bad=change(-1.0))
    found = cells(run(ModelResult("SFT", {}, feedback=start), ModelResult("aligned", {}, feedback=end)))
    assert list(found) == ["good, held out", "bad, held out"]
    assert [row["Before"][0] for row in found.values()] == ["−9.00", "−8.00"]
    assert [row["After"][0] for row in found.values()] == ["−8.00", "−9.00"]


def test_an_older_record_has_its_changes_and_a_missing_side_none() -> None:
    older = replace(END, chosen_logp=None, rejected_logp=None, rejected=None)
    found = cells(
        run(ModelResult("SFT", {}, held_out=HeldOut(40, 38, RIGHT)), ModelResult("a", {}, held_out=older))
    )
    assert list(found) == ["chosen, held out"]
    assert "Before" not in found["chosen, held out"]  # no row has it
    assert found["chosen, held out"]["Change"][0] == "0.500"


def test_training_shows_its_last_steps_free_of_batches() -> None:
    bare = run(ModelResult("SFT", {}), ModelResult("aligned", {}))
    found = cells(replace(bare, curves={"improve": STEPS, "warmup": STEPS, "round-1/improve": STEPS}))
    assert list(found) == [
        "chosen, in training", "rejected, in training",
        "chosen, in training, round-1/improve", "rejected, in training, round-1/improve",
    ]  # fmt: skip
    # Rewards of 0.2 at beta 0.1 are 2 nats; log-likelihoods less their changes are -10 and -30 at each step.
    chosen, rejected = found["chosen, in training"], found["rejected, in training"]
    assert (chosen["Before"][0], chosen["After"][0], chosen["Change"]) == ("−10.00", "−8.00", ("2.000", ""))
    assert (rejected["Before"][0], rejected["After"][0]) == ("−30.00", "−34.00")


def test_a_loss_without_a_reference_and_few_steps_have_no_changes() -> None:
    bare = run(ModelResult("SFT", {}), ModelResult("aligned", {}), loss="simpo")
    assert likelihood_tables([replace(bare, curves={"improve": STEPS})]) == []
    dpo = run(ModelResult("SFT", {}), ModelResult("aligned", {}))
    assert likelihood_tables([replace(dpo, curves={"improve": STEPS[:3]})]) == []
    assert "Likelihood changes" not in render([bare])[0]


def test_page_and_markdown_have_one_table_for_all_runs() -> None:
    other = replace(PAIRS, name="other", curves={"improve": STEPS})
    html, markdown = render([PAIRS, other])
    assert html.count(">Likelihood changes</h2>") == markdown.count("### Likelihood changes\n") == 1
    rows = ("chosen, held out (mine)", "chosen, held out (other)", "chosen, in training (other)")
    assert all(row in html and row in markdown for row in rows)
    assert html.count("intervals are over prompts.") == 1 and "[−14.75,\u00a0−14.25]" in html


def test_a_change_beyond_every_exponent_is_drawn() -> None:
    huge = replace(END, chosen=change(5e4), rejected=change(-5e4))
    found = cells(run(ModelResult("SFT", {}, held_out=START), ModelResult("a", {}, held_out=huge)))
    assert [row["Times as likely"][0] for row in found.values()] == ["over 1,000", "below 0.001"]
