"""Harness results beside the run's own, kept as long as the weights are the same."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from allo import cli
from allo.errors import UserError
from allo.files import harness_results as harness_block
from allo.files.artifacts import RunFolder, held, read_json, write_json
from allo.files.evaluation import HarnessModel
from allo.harness.job import model_job, run_job
from allo.harness.measure import HarnessSettings
from allo.harness.subject import load, of_run
from allo.pipeline import run_all
from allo.report.harness import harness_tables
from allo.report.read import view
from allo.stages.report import write_report
from harness_setup import SHORT, do, needs_lm_eval
from tiny_run import LAB, tiny

RESULT = {
    "harness": "lm_eval",
    "harness_version": "0.4.13",
    "task": "gsm8k_cot",
    "version": 3.0,
    "num_fewshot": 8,
    "limit": 10,
    "num_problems": 10,
    "num_all": 1319,
    "chat_template": False,
    "generation": {"until": ["Q:"]},
    "metrics": [
        {
            "metric": "exact_match",
            "filter": "strict-match",
            "value": 0.30001,
            "stderr": 0.1528,
            "higher_is_better": True,
        }
    ],
    "commit": "0123456789abcdef",
    "dirty": False,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tiny(tmp_path_factory.mktemp("done"), *SHORT)).path


@pytest.fixture
def short_run(done: Path, tmp_path: Path) -> tuple[Path, RunFolder]:
    """Return the folder of a short run, and the run."""
    return tmp_path, RunFolder(Path(shutil.copytree(done, tmp_path / done.name)))


def run_allo(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["allo", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def added(short_run: tuple[Path, RunFolder]) -> Iterator[tuple[Path, RunFolder]]:
    """Add a harness result to the evaluation of a short run."""
    out, run = short_run
    [source] = of_run(tiny(out, *SHORT), run, start=False)
    subject = load(source, dtype=None, device="cpu", trust_remote_code=False)
    with held(run.path), harness_block.amended(run, run.evaluation):
        harness_block.add(
            run.evaluation,
            "aligned",
            label="aligned",
            fingerprint=subject.fingerprint,
            result=RESULT,
            replaces=True,
        )
    return short_run


@pytest.mark.invariant(
    "A harness's results outlive reruns that leave the weights, and are dropped aloud when the weights change."
)
def test_results_outlive_every_rerun_that_leaves_the_weights(
    added: tuple[Path, RunFolder], capfd: pytest.CaptureFixture[str]
) -> None:
    out, run = added
    block = harness_block.read_block(run.evaluation)
    assert block["aligned"]["results"] == [RESULT]
    run_all(tiny(out, *SHORT))
    assert "evaluate  done already" in capfd.readouterr().err
    assert harness_block.read_block(run.evaluation) == block
    assert "the first of 1,319" in (run.path / "report.md").read_text()
    assert "0.3000" in (run.path / "report.html").read_text()

    run_all(tiny(out, *SHORT, "evaluate.sets.test.limit=3"))
    assert "evaluate  done already" not in capfd.readouterr().err
    assert harness_block.read_block(run.evaluation) == block
    assert view(run.path).evaluation.models["aligned"].sets["test"].num_prompts == 3


@pytest.mark.invariant(
    "A harness's results outlive reruns that leave the weights, and are dropped aloud when the weights change."
)
def test_results_of_other_weights_are_dropped_and_that_is_said(
    added: tuple[Path, RunFolder], capfd: pytest.CaptureFixture[str]
) -> None:
    out, run = added
    run_all(tiny(out, *SHORT, "improve.training.learning_rate=1e-3"))
    assert "aligned has other weights now, so its results on gsm8k_cot are dropped" in capfd.readouterr().err
    assert "harness" not in read_json(run.evaluation)


def test_an_edited_evaluation_still_runs_again(added: tuple[Path, RunFolder]) -> None:
    """Adding to a file does not confirm its other content."""
    out, run = added
    content = read_json(run.evaluation)
    content["models"]["aligned"]["label"] = "better"
    write_json(run.evaluation, content)
    with held(run.path), harness_block.amended(run, run.evaluation):
        harness_block.add(run.evaluation, "start", label="SFT", fingerprint="0", result=RESULT, replaces=True)
    run_all(tiny(out, *SHORT))
    content = read_json(run.evaluation)
    assert content["models"]["aligned"]["label"] == "aligned"
    assert set(content["harness"]) == {"aligned"}


def test_another_model_of_the_same_name_stands_beside_the_first(tmp_path: Path) -> None:
    """Folders of models are often called `model` or `merged`; only a run replaces its own models' results."""
    out = tmp_path / "out.json"
    names = []
    for fingerprint in ("1" * 64, "2" * 64, "1" * 64, "2" * 64):
        names.append(
            harness_block.add(
                out, "merged", label="merged", fingerprint=fingerprint, result=RESULT, replaces=False
            )
        )
    assert names == ["merged", "merged (22222222)"] * 2
    block = harness_block.read_block(out)
    assert {name: (entry["label"], entry["fingerprint"][0]) for name, entry in block.items()} == {
        "merged": ("merged", "1"),
        "merged (22222222)": ("merged (22222222)", "2"),
    }
    assert all(entry["results"] == [RESULT] for entry in block.values())


@needs_lm_eval
def test_two_models_of_one_name_and_two_runs_share_a_file(
    tuned: Path, trained_run: tuple[Any, RunFolder], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    settings = HarnessSettings(limit=1, max_new_tokens=4)
    named = tmp_path / tuned.name
    shutil.copytree(LAB, named, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    jobs = [
        model_job(str(base), None, settings, output=out, chat=None, pad_token=None) for base in (tuned, named)
    ]
    recipe, run = trained_run
    before = run_job(recipe, run, settings, start=True, output=out, chat=None)
    jobs.append(before)
    jobs.append(replace(before, sources=[replace(before.sources[0], name="aligned")]))  # of another run
    shown = [model.label for job in jobs for model in do(job, "allo_planted_flaws")]
    assert len(set(shown)) == len(shown) == len(read_json(out)["harness"]) == 5


@pytest.mark.parametrize(
    "other", [{"dtype": "bfloat16"}, {"num_problems": 9}, {"num_all": 1000}, {"generation": None}]
)
def test_a_result_under_another_setting_stands_beside_the_first(
    other: dict[str, Any], tmp_path: Path
) -> None:
    """Rows of another folder are other problems, and another dtype rounds otherwise."""
    out = tmp_path / "out.json"
    results = [RESULT | {"dtype": "float32"}, RESULT | {"dtype": "float32"} | other]
    for result in [*results, *results]:
        harness_block.add(out, "lab", label="lab", fingerprint="0", result=result, replaces=False)
    block = harness_block.read_block(out)
    assert block["lab"]["results"] == results
    [table] = harness_tables(TypeAdapter(list[HarnessModel]).validate_python(list(block.values())))
    assert [row[0].note for row in table.rows] == [result["dtype"] for result in results]


def test_a_file_that_is_no_evaluation_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "package.json"
    file.write_text('{"name": "mine"}')
    with pytest.raises(UserError, match="nothing is added"):
        harness_block.add(file, "lab", label="lab", fingerprint="0", result=RESULT, replaces=True)
    assert file.read_text() == '{"name": "mine"}'


def test_a_report_shows_what_a_figure_was_taken_under(
    short_run: tuple[Path, RunFolder], tmp_path: Path
) -> None:
    _, run = short_run
    harness_block.add(run.evaluation, "aligned", label="<b>", fingerprint="0", result=RESULT, replaces=True)
    html, markdown = write_report([run.path], tmp_path)
    text = markdown.read_text()
    row = next(line for line in text.splitlines() if "exact" in line)
    assert row.count("|") == 7 and "±" in row and "strict-match" in row
    assert "0.3000" in row and "0.1528" in row and "| 8 |" in row
    assert "version 3.0, lm_eval 0.4.13, commit 0123456789" in text
    assert "<b>" not in html.read_text().split("gsm8k_cot")[1].split("</table>")[0]


@needs_lm_eval
def test_the_command_measures_a_run_and_shows_it(
    short_run: tuple[Path, RunFolder], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, run = short_run
    asked = ["--harness", "lm_eval", "--tasks", "allo_planted_flaws", "--limit", "2", "--start"]
    assert run_allo(["evaluate", str(run.path), *asked], monkeypatch) == 0
    shown = capfd.readouterr().out
    assert "start" in shown and "aligned" in shown and "2 the first of" in shown
    assert set(harness_block.read_block(run.evaluation)) == {"start", "aligned"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe"),
        (["RECIPE", "--tasks", "ifeval"], "--harness lm_eval"),
        (["--harness", "lm_eval", "--tasks", "ifeval"], "either a recipe"),
        (["LAB", "--base", "LAB", "--harness", "lm_eval", "--tasks", "ifeval"], "either a recipe"),
        *(
            (["RECIPE", *option.split()], f"standard tasks, which {option.split()[0]} is for")
            for option in [
                "--limit 3",
                "--start",
                "--output o",
                "--device cpu",
                "--dtype float32",
                "--batch-size 8",
                "--apply-chat-template",
                "--include-path p",
                "--pad-token p",
            ]
        ),
        (["LAB", "--harness", "lm_eval", "--tasks", "ifeval", "--force"], "--force applies to the stage"),
        (["LAB", "--harness", "lm_eval", "--tasks", "ifeval", "--set", "a=1"], "--set is for a recipe"),
        (["RECIPE", "--harness", "lm_eval", "--tasks", "ifeval", "--pad-token", "p"], "has `pad_token`"),
        (["LAB", "--harness", "lm_eval"], "needs --tasks"),
        (["LAB", "--harness", "lm_eval", "--tasks", "ifeval"], "--output"),
        (["LAB", "--harness", "lm_eval", "--tasks", "ifeval", "--start"], "--start is for a run"),
        (["RECIPE", "--harness", "lm_eval", "--tasks", "ifeval"], "finish the run first"),
        (["RECIPE", "--harness", "lm_eval", "--tasks", "ifeval", "--delta", "d"], "its own delta"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from allo.recipe import save_recipe

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(save_recipe(tiny(tmp_path)))
    places = {"RECIPE": str(recipe), "LAB": str(LAB)}
    assert run_allo(["evaluate", *(places.get(word, word) for word in arguments)], monkeypatch) == 2
    assert message in capfd.readouterr().err
