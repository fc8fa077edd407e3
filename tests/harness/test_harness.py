"""Standard tasks: lm-eval measures our tasks as we do, and a delta measures as its merged model."""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from pydantic import TypeAdapter

from allo import cli, delta, tasks
from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json
from allo.files.evaluation import HarnessModel
from allo.files.records import Prompt
from allo.harness import own_tasks
from allo.harness.job import model_job, run_job
from allo.harness.measure import HarnessSettings, _unknown, load_tasks
from allo.harness.subject import load, of_model
from allo.recipe.tasks import TASKS
from allo.report.harness import harness_tables
from allo.stages import evaluate
from allo.weights.fingerprints import fingerprint_tensors
from harness_setup import MAX_NEW_TOKENS, NUM_PROBLEMS, do, needs_lm_eval
from tiny_run import LAB


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the completions that lm-eval passes to our verdict."""
    texts: list[str] = []
    judged = own_tasks.verdict

    def listening(row: dict[str, Any], completions: list[str]) -> dict[str, float]:
        texts.extend(completions)
        return judged(row, completions)

    monkeypatch.setattr(own_tasks, "verdict", listening)
    return texts


@pytest.mark.invariant(
    "lm-eval measures our tasks as a run's evaluation does, and a delta on its base as the merged model."
)
@needs_lm_eval
def test_lm_eval_measures_what_a_runs_own_evaluation_does(
    trained_run: tuple[Any, RunFolder], heard: list[str]
) -> None:
    """The same words, the same greedy completions, the same verdicts, for the start and for start plus delta."""
    recipe, run = trained_run
    evaluate.run(recipe, run)
    ours = read_json(run.evaluation)
    settings = HarnessSettings(limit=NUM_PROBLEMS, batch_size=8)
    do(run_job(recipe, run, settings, start=True, output=None, chat=None), "allo_planted_flaws")

    content = read_json(run.evaluation)
    texts = {}
    for name in ("start", "aligned"):
        texts[name] = [row["greedy"]["text"] for row in ours["completions"][name]["test"]]
        greedy = ours["models"][name]["sets"]["test"]["greedy"]
        [result] = content["harness"][name]["results"]
        assert result["num_problems"] == greedy["num"] == NUM_PROBLEMS
        assert [metric["value"] for metric in result["metrics"]] == [greedy["accuracy"]]
        assert 0 < greedy["accuracy"] < 1, "all right or all wrong would agree by chance"
    assert heard == texts["start"] + texts["aligned"]
    assert texts["start"] != texts["aligned"]
    assert {key: value for key, value in content.items() if key != "harness"} == ours, "only added to"


@pytest.mark.invariant(
    "lm-eval measures our tasks as a run's evaluation does, and a delta on its base as the merged model."
)
@needs_lm_eval
def test_a_delta_on_its_base_measures_as_the_merged_model(
    tuned: Path, change: Path, tmp_path: Path, heard: list[str]
) -> None:
    merged = tmp_path / "merged"
    delta.apply(LAB, change, merged)
    out = tmp_path / "out.json"
    settings = HarnessSettings(limit=NUM_PROBLEMS, batch_size=8, max_new_tokens=MAX_NEW_TOKENS)
    for base, file in ((str(LAB), str(change)), (str(merged), None), (str(LAB), None)):
        do(model_job(base, file, settings, output=out, chat=None, pad_token=None), "allo_planted_flaws")
    with_delta, whole, bare = read_json(out)["harness"].values()
    assert with_delta["fingerprint"] == whole["fingerprint"] != bare["fingerprint"]
    assert with_delta["results"][0]["metrics"] == whole["results"][0]["metrics"]
    completions = [heard[first : first + NUM_PROBLEMS] for first in range(0, len(heard), NUM_PROBLEMS)]
    assert completions[0] == completions[1] != completions[2]


def test_a_models_fingerprint_is_that_of_its_weights_whatever_it_runs_in(tuned: Path, change: Path) -> None:
    def loaded(base: Path, file: Path | None, dtype: str | None = None) -> Any:
        source = of_model(str(base), None if file is None else str(file), pad_token=None)
        return load(source, dtype=dtype, device="cpu", trust_remote_code=False)

    with_delta, whole = loaded(LAB, change), loaded(tuned, None)
    assert with_delta.fingerprint == whole.fingerprint
    assert fingerprint_tensors(with_delta.model.named_parameters()) == whole.fingerprint
    halved = loaded(LAB, change, "bfloat16")
    assert halved.fingerprint == whole.fingerprint and halved.model.dtype == torch.bfloat16


def test_a_delta_of_another_base_is_refused(tuned: Path, change: Path) -> None:
    source = of_model(str(tuned), str(change), pad_token=None)
    with pytest.raises(UserError, match="is not the base that"):
        load(source, dtype=None, device="cpu", trust_remote_code=False)


def test_a_delta_is_not_put_onto_a_gguf_file_beside_its_base(change: Path, tmp_path: Path) -> None:
    """The delta would match the bits of the folder around the file."""
    base = tmp_path / "base"
    shutil.copytree(LAB, base)
    (base / "base.gguf").write_bytes(b"GGUF")
    source = of_model(str(base / "base.gguf"), str(change), pad_token=None)
    with pytest.raises(UserError, match=r"base\.gguf: a delta applies to a checkpoint folder"):
        load(source, dtype=None, device="cpu", trust_remote_code=False)


def test_a_folder_whose_file_holds_no_tensor_is_refused(tmp_path: Path) -> None:
    shutil.copytree(LAB, tmp_path / "base")
    (tmp_path / "base/model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    source = of_model(str(tmp_path / "base"), None, pad_token=None)
    with pytest.raises(UserError, match="the files hold 0 tensors"):
        load(source, dtype=None, device="cpu", trust_remote_code=False)


@needs_lm_eval
def test_the_settings_of_a_result_are_recorded_and_other_ones_stand_beside(tmp_path: Path) -> None:
    out = tmp_path / "out.json"

    def measured(**settings: Any) -> list[dict[str, Any]]:
        job = model_job(
            str(LAB),
            None,
            HarnessSettings(batch_size=4, max_new_tokens=MAX_NEW_TOKENS, **settings),
            output=out,
            chat=None,
            pad_token=None,
        )
        do(job, "allo_planted_flaws")
        results: list[dict[str, Any]] = read_json(out)["harness"]["lab"]["results"]
        return results

    [first] = measured(limit=3)
    assert (first["limit"], first["num_problems"], first["num_fewshot"]) == (3, 3, 0)
    assert first["num_all"] > 3
    assert first["version"] == 1.0 and first["harness_version"] == importlib.metadata.version("lm_eval")
    assert first["versions"]["lm_eval"] == first["harness_version"] and "commit" in first
    assert first["generation"] == {"until": [], "do_sample": False, "max_gen_toks": MAX_NEW_TOKENS}
    [metric] = first["metrics"]
    assert metric["metric"] == "acc" and metric["stderr"] is not None
    assert [result["limit"] for result in measured(limit=4)] == [3, 4]
    assert [(result["limit"], result["num_fewshot"]) for result in measured(limit=4, num_fewshot=1)] == [
        *((3, 0), (4, 0), (4, 1))
    ]
    assert len(measured(limit=3)) == 3, "the same again takes the other's place"


@needs_lm_eval
def test_lm_eval_keeps_nothing_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.caching.cache
    import sqlitedict

    def pickles(*_: Any, **__: Any) -> None:
        raise AssertionError("pickled")

    monkeypatch.setattr(lm_eval.caching.cache.dill, "dumps", pickles)
    monkeypatch.setattr(lm_eval.caching.cache.dill, "loads", pickles)
    monkeypatch.setattr(sqlitedict.SqliteDict, "__init__", pickles)
    settings = HarnessSettings(limit=1, max_new_tokens=4)
    out = tmp_path / "o.json"
    do(model_job(str(LAB), None, settings, output=out, chat=None, pad_token=None), "allo_planted_flaws")
    [result] = read_json(out)["harness"]["lab"]["results"]
    assert result["num_problems"] == 1


@needs_lm_eval
def test_task_files_of_ones_own_are_found(tmp_path: Path) -> None:
    """A multiple-choice task over local rows, scored by lm-eval itself."""
    rows = [{"ask": f"Problem: Tom has {n} apples.", "options": ["3", "4"], "right": n % 2} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        f"task: apples\ndataset_path: json\ndataset_kwargs: {{data_files: {tmp_path}/rows.jsonl}}\n"
        "output_type: multiple_choice\ntest_split: train\ndoc_to_text: ask\ndoc_to_choice: options\n"
        "doc_to_target: right\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    out = tmp_path / "out.json"
    settings = HarnessSettings(include_path=tmp_path)
    do(model_job(str(LAB), None, settings, output=out, chat=None, pad_token=None), "apples")
    [result] = read_json(out)["harness"]["lab"]["results"]
    assert (result["task"], result["num_problems"], result["generation"]) == ("apples", 4, None)
    assert result["metrics"][0]["metric"] == "acc"


@needs_lm_eval
def test_impossible_tasks_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.yaml").write_text(
        f"task: broken\ndataset_path: json\ndataset_kwargs: {{data_files: {tmp_path}/none.jsonl}}\n"
        "test_split: train\ndoc_to_text: ask\ndoc_to_target: right\n"
    )
    with pytest.raises(UserError, match="broken: lm-eval cannot load it"):
        load_tasks(["broken"], HarnessSettings(include_path=tmp_path))
    with pytest.raises(UserError, match="no such folder of task files"):
        load_tasks(["broken"], HarnessSettings(include_path=tmp_path / "none"))
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(UserError, match="has no split 'test'"):
        load_tasks(["allo_gsm8k"], HarnessSettings(data_folder=tmp_path))
    job = model_job(str(LAB), None, HarnessSettings(), output=tmp_path / "o.json", chat=None, pad_token=None)
    with pytest.raises(UserError, match="--max-new-tokens"):
        do(job, "allo_planted_flaws")


@needs_lm_eval
def test_an_error_below_lm_eval_is_not_reported_as_its_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(chat: bool | None = None) -> Any:
        settings = HarnessSettings(limit=1, max_new_tokens=4)
        return model_job(str(LAB), None, settings, output=tmp_path / "o.json", chat=chat, pad_token=None)

    with pytest.raises(UserError, match="no chat template"):
        do(job(chat=True), "allo_planted_flaws")

    from lm_eval.api.task import ConfigurableTask

    with monkeypatch.context() as patch:
        patch.setattr(ConfigurableTask, "UNSAFE_CODE", True, raising=False)
        with pytest.raises(UserError, match=r"lm-eval refuses: .*unsafe"):
            do(job(), "allo_planted_flaws")

    def breaks(*_: Any) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(own_tasks, "verify", breaks)
    with pytest.raises(ValueError, match="a mistake of ours") as error:
        do(job(), "allo_planted_flaws")
    assert not isinstance(error.value, UserError)


def test_without_lm_eval_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"allo-align\[eval\]"):
        load_tasks(["gsm8k_cot"], HarnessSettings())


def test_an_unknown_task_is_answered_with_near_names() -> None:
    assert "near it: openbookqa" in _unknown("opnbookqa", ["arc_easy", "openbookqa"])
    assert "allo_qasc" in _unknown("qasc", ["arc_easy"])
    assert "lm_eval ls tasks" in _unknown("zzzzzz", ["arc_easy"])


def own_rows(folder: Path, task: str, split: str) -> Path:
    """Write rows of a task with and without options as a folder of local rows."""
    rows = [
        {
            "id": f"{task}-1",
            "question": "How many legs have two cats?",
            "answer": "8",
            "solution": "4 + 4 = 8",
        },
        {
            "id": f"{task}-2",
            "question": "What barks?",
            "answer": "dog",
            "choices": ["cat", "dog"],
            "solution": "It does.",
        },
    ]
    path = folder / task / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("task", [name.removeprefix(own_tasks.PREFIX) for name in own_tasks.names()])
def test_our_tasks_have_our_rows_words_and_verdicts(task: str, tmp_path: Path) -> None:
    folder = own_rows(tmp_path, task, "test")
    rows = list(own_tasks.splits(task, data_folder=str(folder), version=1.0)["test"])[:2]
    assert [Prompt(**row) for row in rows] == list(tasks.load(task, "test", folder=folder))[:2]
    for row, other in zip(rows, reversed(rows), strict=True):
        assert own_tasks.verdict(row, [row["solution"]]) == {"acc": 1.0}
        assert own_tasks.verdict(row, [other["solution"]]) == {"acc": 0.0}
        assert own_tasks.verdict(row, [f"Surely {row['answer']}"]) == {"acc": 0.0}


def test_a_chats_words_have_no_line_break_at_their_end(tmp_path: Path) -> None:
    folder = str(own_rows(tmp_path, "gsm8k", "test"))
    plain, chat = (
        [row["prompt"] for row in own_tasks.splits("gsm8k", data_folder=folder, chat=chat)["test"]]
        for chat in (False, True)
    )
    assert chat == [text.strip() for text in plain] != plain


def test_examples_are_read_only_where_they_are_shown(tmp_path: Path) -> None:
    folder = str(own_rows(tmp_path, "gsm8k", "test"))
    assert len(own_tasks.splits("gsm8k", data_folder=folder, examples=False)["train"]) == 0
    with pytest.raises(UserError, match="has no split 'train'"):
        own_tasks.splits("gsm8k", data_folder=folder)["train"]


def test_every_task_with_an_answer_has_a_file_for_lm_eval() -> None:
    named = {name.removeprefix(own_tasks.PREFIX) for name in own_tasks.names()}
    tasks = {task.name for task in TASKS.values() if task.has_answers}
    prefix = f"src/allo/harness/tasks/{own_tasks.PREFIX}"
    assert not tasks - named, f"add {prefix}NAME.yaml, four lines as its neighbours, for {tasks - named}"
    assert not named - tasks, (
        f"remove {prefix}NAME.yaml of {named - tasks}: TASKS has no such task with answers"
    )


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluating.md").read_text(encoding="utf-8")


def test_the_pages_commands_exist_and_its_file_is_read() -> None:
    text = "".join(re.findall(r"(?s)```bash\n(.*?)```", PAGE)).replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("allo ")]
    assert len(commands) == 4
    evaluate_command = typer.main.get_command(cli.app).commands["evaluate"]  # type: ignore[attr-defined]
    for words in commands:
        assert words[0] == "evaluate"
        given = evaluate_command.make_context("evaluate", words[1:]).params
        assert given["harness"] == "lm_eval" and given["tasks"]
    [shown] = re.findall(r"(?s)```json\n(.*?)```", PAGE)
    [table] = harness_tables(
        TypeAdapter(dict[str, HarnessModel]).validate_python(json.loads(shown)["harness"]).values()
    )
    assert [cell.text for cell in table.rows[0][:4]] == ["aligned", "exact_match", "0.4100", "200"]


def test_the_page_names_every_task_of_ours() -> None:
    assert set(re.findall(r"`(allo_\w+)`", PAGE)) == set(own_tasks.names()) - {"allo_planted_flaws"}
