"""Malformed files of answers and of judges: refused by name with advice, before any question is asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.sampling.endpoint import Endpoint
from allo.winrate.judging import JudgeSettings, judge
from allo.winrate.outputs import Output, Outputs, models_of_run, of_file, of_run, sets_of_run

ROW = {"prompt_id": "p", "prompt": "Say it.", "greedy": {"text": "it", "num_tokens": 1}, "sampled": []}


def evaluation(row: Any) -> dict[str, Any]:
    return {"schema": 1, "completions": {"aligned": {"test": [row]}}}


def test_a_good_evaluation_is_read(tmp_path: Path) -> None:
    (tmp_path / "08-eval.json").write_text(json.dumps(evaluation(ROW)))
    assert (models_of_run(tmp_path), sets_of_run(tmp_path)) == (["aligned"], ["test"])
    (answer,) = of_run(tmp_path, model="aligned", set="test", kind="greedy").rows
    assert answer == Output("it", "p", "Say it.", 1)


EVALUATIONS: dict[str, str | bytes] = {
    "null": "null",
    "list": "[]",
    "text": '"x"',
    "empty": "",
    "half": '{"completions": {"al',
    "NULs": b"\0" * 50,
    "not UTF-8": b'{"completions": "\xff"}',
    "deep": "[" * 10_000,
    "twice": '{"completions": {}, "completions": {}}',
    "no completions": "{}",
    "completions null": '{"completions": null}',
    "completions list": '{"completions": [1]}',
    "completions text": '{"completions": "aligned"}',
    "model null": '{"completions": {"aligned": null}}',
    "set null": '{"completions": {"aligned": {"test": null}}}',
    "rows text": '{"completions": {"aligned": {"test": "rows"}}}',
    "row null": json.dumps(evaluation(None)),
    "row text": json.dumps(evaluation("x")),
    "row without id": json.dumps(evaluation({"prompt": "x", "greedy": ROW["greedy"]})),
    "id number": json.dumps(evaluation(ROW | {"prompt_id": 7})),
    "prompt number": json.dumps(evaluation(ROW | {"prompt": 7})),
    "prompt of texts": json.dumps(evaluation(ROW | {"prompt": ["x"]})),
    "answer text": json.dumps(evaluation(ROW | {"greedy": "it"})),
    "answer without text": json.dumps(evaluation(ROW | {"greedy": {"num_tokens": 1}})),
    "tokens word": json.dumps(evaluation(ROW | {"greedy": {"text": "it", "num_tokens": "many"}})),
    "tokens negative": json.dumps(evaluation(ROW | {"greedy": {"text": "it", "num_tokens": -1}})),
    "sampled object": json.dumps(evaluation(ROW | {"sampled": {}})),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_of_another_form_is_refused_by_its_file(name: str, tmp_path: Path) -> None:
    content = EVALUATIONS[name]
    file = tmp_path / "08-eval.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"08-eval\.json"):
        of_run(tmp_path, model="aligned", set="test", kind="greedy")
    with pytest.raises(UserError, match=r"08-eval\.json"):
        sets_of_run(tmp_path)


@pytest.mark.parametrize("manifest", ["null", "[]", '{"stages": {}}', '{"name": 7}'])
def test_a_manifest_without_a_name_leaves_the_folders(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "08-eval.json").write_text(json.dumps(evaluation(ROW)))
    (tmp_path / "manifest.json").write_text(manifest)
    found = of_run(tmp_path, model="aligned", set="test", kind="greedy")
    assert found.origin["run"] == tmp_path.name


FILES: dict[str, str | bytes] = {
    "null": "null",
    "object": "{}",
    "empty list": "[]",
    "of null": "[null]",
    "of lists": "[[]]",
    "text": '"x"',
    "nothing": "",
    "deep": "[" * 10_000,
    "NaN": '[{"instruction": "x", "output": NaN}]',
    "digits": f'[{{"instruction": "x", "output": "y", "n": {"9" * 5000}}}]',
    "twice": '[{"instruction": "x", "output": "y", "output": "z"}]',
    "half a pair": '[{"instruction": "x", "output": "\\ud83d"}]',
    "not UTF-8": b'[{"instruction": "x", "output": "\xff"}]',
    "output number": '[{"instruction": "x", "output": 7}]',
    "output null": '[{"instruction": "x", "output": null}]',
    "no output": '[{"instruction": "x"}]',
    "no choices": '[{"question_id": "x", "choices": []}]',
    "choices text": '[{"question_id": "x", "choices": "y"}]',
    "no turns": '[{"question_id": "x", "choices": [{"turns": []}]}]',
    "messages short": '[{"uid": "x", "messages": [{"content": "y"}]}]',
    "messages null": '[{"uid": "x", "messages": null}]',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_answers_of_another_form_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    content = FILES[name]
    file = tmp_path / "answers.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"answers\.json"):
        of_file(file)


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_bytes(b"\xef\xbb\xbf" + b'[{"instruction": "x", "output": "y"}]')
    assert [row.text for row in of_file(file).rows] == ["y"]


@pytest.mark.parametrize(
    "record",
    ["null", "[]", "{}", '{"model": null}', '{"model": [], "baseline": {}, "judge": {}}', "7", "{", "\0"],
)
def test_a_judges_record_of_another_form_is_refused_before_anything_is_asked(
    record: str, tmp_path: Path
) -> None:
    own, other = (
        Outputs(name, "test", [Output(name, "p", "Say it.")], {"file": name}) for name in ("model", "base")
    )
    path = tmp_path / "judged-test-model-base-judge.json"
    path.write_text(record)
    endpoint = Endpoint("http://127.0.0.1:9/v1", "judge")
    with pytest.raises(UserError, match=r"judged-test-model-base-judge\.json"):
        judge(own, other, endpoint, JudgeSettings(max_tokens=5, temperature=None), folder=tmp_path)
    assert path.read_text() == record
