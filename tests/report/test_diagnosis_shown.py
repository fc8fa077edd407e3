"""The diagnosis where people read it: in the terminal after a stage, in the report and in the model card."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from test_card import FACTS

from allo.files.evaluation import Divergence, Evaluation, ModelResult, SetResult
from allo.report.card import card
from allo.report.page import render
from allo.report.read import view
from allo.report.run_view import Manifest, RunView
from allo.stages.explain import sentences_of
from curves_setup import RECIPE, forgetting, improving
from report_setup import Page

FALL = improving(chosen=-5.3, rejected=-14.0)


def write_run(folder: Path, *, kl: float = 0.25) -> Path:
    """Write what a run leaves that improved too far and forgot well."""
    for name, steps in {"06-forget": forgetting(), "07-improve": FALL, "04-warmup": FALL}.items():
        (folder / name).mkdir(parents=True)
        lines = "".join(json.dumps(step | {"grad_norm": None}) + "\n" for step in steps)
        (folder / name / "metrics.jsonl").write_text(lines)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "mine", "model": "lab"} | RECIPE))
    sets = {"test": {"num_prompts": 40, "mean_tokens": 20.0}}
    models = {
        "start": {"label": "SFT", "sets": sets},
        "aligned": {"label": "aligned", "sets": sets, "kl": {"set": "plain", "value": kl}},
    }
    (folder / "08-eval.json").write_text(json.dumps({"schema": 1, "models": models}))
    return folder


def test_the_terminal_gets_a_stages_sentences_when_it_ends(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert sentences_of(run, "forget") == (
        "In 21 steps, the tokens marked as wrong lost 0.20 nats each (median of the last 3 logged).",
        "Nothing in the curves is unusual.",
    )
    done, fault = sentences_of(run, "improve")
    assert done.startswith("In 40 steps, chosen answers lost 5.2")
    assert (
        "Raise improve.anchor (now 0), lower improve.training.learning_rate (now 0.0002), or lower" in fault
    )
    (far,) = sentences_of(run, "evaluate")
    assert far.startswith("The KL to the start is 0.25 nats a token on plain; tuned runs")
    for stage in ("sample", "judge", "locate", "score", "round-1/improve", "report"):
        assert sentences_of(run, stage) == (), stage


def test_a_good_evaluation_says_nothing_and_an_unfinished_run_is_read(tmp_path: Path) -> None:
    assert sentences_of(write_run(tmp_path / "good", kl=0.01), "evaluate") == ()
    unfinished = write_run(tmp_path / "unfinished")
    (unfinished / "08-eval.json").unlink()
    assert len(sentences_of(unfinished, "improve")) == 2


def test_report_and_card_say_the_same_as_the_terminal(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    said = [text for stage in ("forget", "improve", "evaluate") for text in sentences_of(run, stage)]
    html, markdown = render([view(run)])
    plain = " ".join("".join(Page(html).text).split())
    text = card(view(run), FACTS)
    for sentence in said:
        assert " ".join(sentence.split()) in plain
        escaped = " ".join(sentence.split())
        assert escaped in markdown and escaped in text
    assert (
        markdown.count("### Diagnosis") == text.count("### Diagnosis") == html.count(">Diagnosis</h2>") == 1
    )


def test_runs_of_one_report_are_diagnosed_apart(tmp_path: Path) -> None:
    runs = [replace(view(write_run(tmp_path / name)), name=name) for name in ("one", "two")]
    _, markdown = render(runs)
    assert "### Diagnosis of one\n" in markdown and "### Diagnosis of two\n" in markdown


@pytest.mark.parametrize("name", ["<script>x</script>", "a | **b** `c`", "\u202eevil\x1b[31m"])
def test_names_of_sets_stay_texts(name: str) -> None:
    before = ModelResult("SFT", {name: SetResult(9, mean_tokens=10.0)})
    after = ModelResult("a", {name: SetResult(9, mean_tokens=30.0)}, kl=Divergence(name, 0.5))
    run = RunView(
        "mine", Evaluation(1, {"start": before, "aligned": after}), Manifest(1, "mine"), settings=RECIPE
    )
    html, markdown = render([run])
    assert "<script>x" not in html + markdown and "**b**" not in markdown
    assert not any(sign in html + markdown for sign in "\x1b\u202e")
    assert "30.0 tokens on average" in html and "30.0 tokens on average" in markdown


def test_a_run_without_curves_and_faults_has_no_diagnosis() -> None:
    run = RunView("mine", Evaluation(1, {"aligned": ModelResult("a", {})}), Manifest(1, "mine"))
    html, markdown = render([run])
    assert "Diagnosis" not in html + markdown + card(run, FACTS)


def test_the_report_explains_every_fault_and_the_other_places_the_main_one(tmp_path: Path) -> None:
    run = write_run(tmp_path, kl=0.01)
    steps = improving(chosen=-5.3, rejected=-80)
    (run / "07-improve/metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    html, markdown = render([view(run)])
    advice = "improve.beta (now 0.1)"
    assert advice in html and not any(advice in text for text in (markdown, *sentences_of(run, "improve")))
    assert html.count("lower improve.density (now 0.1)") == 1
