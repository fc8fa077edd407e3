"""Runs of one report compared in sentences: their numbers are the records' own, and unlike runs are named so."""

from dataclasses import replace
from typing import Any

import pytest

from allo.files.evaluation import (
    Accuracy,
    Answer,
    Divergence,
    Evaluated,
    Evaluation,
    HeldOut,
    HeldOutFeedback,
    Measured,
    ModelResult,
    Rate,
    Rewards,
    SetResult,
)
from allo.report.compared import comparisons, distinct
from allo.report.page import render
from allo.report.run_view import Manifest, RunView, StageRecord
from allo.stats.metrics import bootstrap
from report_setup import Page

DPO = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]] * 5
ALLO = [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]] * 5


def mean(values: list[list[int]]) -> float:
    return sum(map(sum, values)) / sum(map(len, values))


def answers(values: list[list[int]], *, prompt: str = "p", rewards: bool = False) -> list[Evaluated]:
    def answer(value: int) -> Answer:
        return Answer("x", reward=float(value)) if rewards else Answer("x", correct=bool(value))

    return [
        Evaluated(f"{place}", f"{prompt} {place}", sampled=[answer(value) for value in own])
        for place, own in enumerate(values)
    ]


def run(
    name: str, values: list[list[int]], *, rows: list[Evaluated] | None = None, **settings: Any
) -> RunView:
    share = mean(values)
    sampled = Accuracy(share, share - 0.05, share + 0.05, 80)
    result = ModelResult(
        "aligned",
        {"test": SetResult(20, sampled=sampled)},
        kl=Divergence("plain", share / 10),
        density=share,
        seconds=60 * share,
        training_state_bytes=round(1e6 * share),
    )
    completions = {"aligned": {"test": answers(values) if rows is None else rows}}
    return RunView(
        name, Evaluation(1, {"aligned": result}, completions), Manifest(1, name), settings=settings
    )


def said(one: RunView, two: RunView) -> str:
    """Return the only comparison of two runs, with plain spaces."""
    (found,) = comparisons([one, two])
    return " ".join(found.sentences).replace("\u00a0", " ")


def test_the_sentence_has_the_records_numbers_and_the_paired_difference() -> None:
    dpo, allo = run("dpo", DPO), run("allo", ALLO)
    paired = bootstrap([[sum(a) / 4 - sum(b) / 4] for a, b in zip(ALLO, DPO, strict=True)], seed=0)
    assert paired.low > 0
    assert said(dpo, allo).startswith(
        f"On test, the sampled accuracy of allo is {100 * mean(ALLO):.1f}% and that of dpo {100 * mean(DPO):.1f}%: "
        f"{100 * (mean(ALLO) - mean(DPO)):.1f} points more [{100 * paired.low:.1f}, {100 * paired.high:.1f}] over the "
        "same 20 prompts; the interval does not contain 0. Price of allo against dpo: "
    )
    for part in (
        f"{100 * mean(ALLO):.3g}% against {100 * mean(DPO):.3g}% of the weights trained",
        f"KL to the start {mean(ALLO) / 10:.4f} against {mean(DPO) / 10:.4f} nats a token",
        f"{round(1e3 * mean(ALLO))} kB against {round(1e3 * mean(DPO))} kB of training state",
        f"{60 * mean(ALLO):.1f} s against {60 * mean(DPO):.1f} s of training",
    ):
        assert part in said(dpo, allo)
    assert "points less [−" in said(allo, dpo) and "does not contain 0" in said(allo, dpo)


def test_equal_runs_show_no_difference() -> None:
    assert "contains 0, so no difference is shown" in said(run("a", ALLO), run("b", ALLO))
    mixed = [ALLO[place] if place % 2 else DPO[place] for place in range(20)][::-1]
    text = said(run("a", DPO), run("b", mixed))
    assert "contains 0, so no difference is shown" in text


def test_page_and_markdown_state_each_later_run_against_the_first() -> None:
    runs = [run("dpo", DPO), run("allo", ALLO), run("third", DPO)]
    html, markdown = render(runs)
    plain = " ".join("".join(Page(html).text).split())
    for title, others in (("allo against dpo", runs[:2]), ("third against dpo", runs[::2])):
        assert html.count(f">{title}</h2>") == markdown.count(f"### {title}\n") == 1
        for sentence in comparisons(others)[0].sentences:
            assert " ".join(sentence.split()) in plain
            assert " ".join(sentence.split()) in markdown
    assert plain.index("allo against dpo On test") < plain.index("Results dpo.")
    assert 'class="compared"' not in render(runs[:1])[0]  # a single run has no other


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda run: replace(run, evaluation=replace(run.evaluation, completions={})), "the intervals "),
        (lambda _: run("allo", ALLO, rows=answers(ALLO, prompt="another")), "answered different prompts"),
        (lambda _: run("allo", ALLO[:19]), "answered different prompts"),
    ],
)
def test_answers_to_other_prompts_are_not_paired(change: Any, expected: str) -> None:
    text = said(run("dpo", DPO), change(run("allo", ALLO)))
    assert expected in text and "over the same" not in text


def test_without_answers_the_runs_own_intervals_are_shown() -> None:
    dpo, allo = (
        replace(each, evaluation=replace(each.evaluation, completions={}))
        for each in (run("dpo", DPO), run("allo", ALLO))
    )
    text = said(dpo, allo)
    low, high = (100 * (mean(ALLO) + each) for each in (-0.05, 0.05))
    assert f"is {100 * mean(ALLO):.1f}% [{low:.1f}, {high:.1f}] and" in text
    assert "points more; the intervals do not overlap." in text


def test_rewards_of_one_judge_are_compared_and_of_two_are_not() -> None:
    def ranked(name: str, values: list[list[int]], judge: str) -> RunView:
        made = run(name, values, rows=answers(values, rewards=True), judge={"function": [judge]})
        rewards = {"sampled": Rewards(Measured(mean(values), 0.1, 0.9, 80))}
        sets = {"test": SetResult(20, rewards=rewards)}
        models = {"aligned": replace(made.after, sets=sets)}
        return replace(made, evaluation=replace(made.evaluation, models=models))

    text = said(ranked("dpo", DPO, "f.py:a"), ranked("allo", ALLO, "f.py:a"))
    assert (
        f"the mean reward of sampled answers of allo is {mean(ALLO):.3f} and that of dpo {mean(DPO):.3f}"
        in text
    )
    assert "over the same 20 prompts" in text
    text = said(ranked("dpo", DPO, "f.py:a"), ranked("allo", ALLO, "f.py:b"))
    assert "On test" not in text and "no measure in common" in text


def test_held_out_rows_are_compared_if_they_are_as_many() -> None:
    def held(name: str, value: float, num: int = 40) -> RunView:
        rate = Rate(value, value - 0.1, value + 0.1)
        pairs = HeldOut(num, num, rate, reward_accuracy=rate)
        labelled = HeldOutFeedback(num, num, num, rate, reward_auc=rate)
        result = ModelResult("aligned", {}, held_out=pairs, feedback=labelled)
        return RunView(name, Evaluation(1, {"aligned": result}), Manifest(1, name))

    text = said(held("dpo", 0.5), held("allo", 0.75))
    assert (
        "On held-out pairs, the reward accuracy of allo is 75.0% [65.0, 85.0] and that of dpo 50.0%" in text
    )
    assert "On held-out completions, the reward AUC of allo is 75.0%" in text
    assert text.count("25.0 points more; the intervals do not overlap") == 2
    assert "points" not in said(held("dpo", 0.5), held("allo", 0.75, num=39))


def test_runs_that_differ_in_more_than_training_are_named_so() -> None:
    settings = {"evaluate": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40}}
    dpo, allo = run("dpo", DPO, **settings), run("allo", ALLO, **settings)
    assert "not one of training alone" not in said(dpo, allo)
    cooler = run("allo", ALLO, evaluate=settings["evaluate"] | {"temperature": 0.7})
    assert "(temperature, top_p, max_new_tokens: 0.7, 1.0, 40 for allo, 1.0, 1.0, 40 for dpo)" in said(
        dpo, cooler
    )
    started = [
        replace(
            each, manifest=Manifest(1, each.name, stages={"sft": StageRecord(outputs={"00-sft": digest})})
        )
        for each, digest in ((dpo, "a"), (allo, "b"))
    ]
    assert "Their starting models differ" in said(*started)


def names_of(*settings: dict[str, Any]) -> list[str]:
    return [each.name for each in distinct([run("a", ALLO, **one) for one in settings])]


def test_runs_of_one_name_are_named_by_the_settings_that_differ() -> None:
    slow, fast = ({"forget": {"rate": rate, "beta": 0.1}, "out": str(rate)} for rate in (2e-5, 2e-4))
    assert names_of(slow, fast) == ["a (forget.rate 2e-05)", "a (forget.rate 0.0002)"]
    assert names_of(slow, {**fast, "forget": None}) == ["a (forget a block)", "a (forget null)"]
    assert names_of({"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}) == [
        "a (b 1, a 1)",
        "a (b 2, a 1)",
        "a (b 1, a 2)",
    ]
    long = ("x" * 80 + end for end in "ab")
    assert names_of(*({"data": {"pairs": each}} for each in long)) == ["a (1)", "a (2)"]  # a name is cut
    assert names_of(slow, slow) == ["a (1)", "a (2)"]  # such as the same recipe on rows that were edited
    assert names_of({"out": "one"}, {"out": "two"}) == ["a (1)", "a (2)"]
    (found,) = comparisons([run("a", ALLO, **slow), run("b", DPO, **fast)])
    assert found.sentences[-1] == "Settings of b against a: forget.rate 0.0002 against 2e-05."


def test_runs_of_one_name_get_numbers_and_hostile_names_stay_text() -> None:
    assert [each.name for each in distinct([run("a", ALLO), run("b", DPO), run("a", ALLO)])] == [
        "a (1)",
        "b",
        "a (2)",
    ]
    html, markdown = render([run("<script>x</script>", DPO), run("\u202e| **b**", ALLO)])
    assert "<script>x" not in html + markdown and "\u202e" not in html + markdown and "**b**" not in markdown
