"""Answers to judge: from a run, the set itself, or another project's file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.recipe import save_recipe
from allo.winrate import outputs
from allo.winrate.outputs import Output, Outputs, duels, of_file, of_run, solutions
from tiny_run import tiny

PROMPT = [{"role": "user", "content": " Say hello.\n"}]


def answer(text: str) -> dict[str, Any]:
    return {"text": text, "correct": False, "num_tokens": len(text.split())}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Make a finished run of two models and one set, with solutions for its prompts."""
    folder = tmp_path / "runs" / "own"
    folder.mkdir(parents=True)
    rows = [
        {
            "prompt_id": "a",
            "prompt": PROMPT,
            "answer": None,
            "greedy": answer("good day to you"),
            "sampled": [],
        },
        {"prompt_id": "b", "prompt": "Count to two.", "answer": None, "greedy": answer("1 2"), "sampled": []},
    ]
    start = [row | {"greedy": answer("well")} for row in rows]
    completions = {"start": {"talk": start}, "aligned": {"talk": rows}}
    models = {name: {"label": name, "sets": {}} for name in completions}
    evaluation = {"schema": 1, "models": models, "completions": completions}
    (folder / "08-eval.json").write_text(json.dumps(evaluation))
    prompts = tmp_path / "prompts.jsonl"
    known = [
        {"id": "a", "prompt": PROMPT, "solution": "good, or hello"},
        {"id": "b", "prompt": "Count to two.", "solution": "one, two"},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in known))
    sets = json.dumps({"talk": {"file": str(prompts), "split": "train"}})
    (folder / "recipe.yaml").write_text(save_recipe(tiny(tmp_path / "runs", f"evaluate.sets={sets}")))
    return folder


def test_a_runs_answers_are_paired_with_another_models_and_the_sets_own(run: Path) -> None:
    own = of_run(run, model="aligned", set="talk", kind="greedy")
    start = of_run(run, model="start", set="talk", kind="greedy")
    assert [(duel.id, duel.model, duel.baseline) for duel in duels(own, start)[0]] == [
        ("a", "good day to you", "well"),
        ("b", "1 2", "well"),
    ]
    thinking = replace(own, rows=[replace(row, text=f"<think>hm</think>{row.text}") for row in own.rows])
    assert duels(thinking, start) == duels(own, start), "no judge is shown thoughts"
    found, alone = duels(own, solutions(run, set="talk"))
    assert alone == 0 and [duel.baseline for duel in found] == ["good, or hello", "one, two"]
    assert [duel.instruction for duel in found] == [" Say hello.\n", "Count to two."]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model_outputs.json", json.dumps([{"instruction": "Say hello.", "output": "hi", "generator": "x"}])),
        ("model_outputs.jsonl", json.dumps({"instruction": "Say hello.", "output": "hi"})),
        (
            "model_outputs.json",
            json.dumps([{"instruction": "Say hello.", "output": "hi", "uid": "7", "model": {"name": "x"}}]),
        ),
        (
            "x.jsonl",
            json.dumps({"question_id": "a", "choices": [{"index": 0, "turns": [{"content": "hi"}]}]}),
        ),
        (
            "x.jsonl",
            json.dumps(
                {
                    "uid": "a",
                    "messages": [
                        {"role": "system", "content": "Be kind."},
                        {"role": "user", "content": "Say hello."},
                        {"role": "assistant", "content": {"thought": "a greeting", "answer": "hi"}},
                    ],
                }
            ),
        ),
    ],
)
def test_a_file_of_either_project_is_a_baseline(name: str, content: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    found, alone = duels(of_run(run, model="aligned", set="talk", kind="greedy"), of_file(tmp_path / name))
    assert [(duel.id, duel.baseline) for duel in found] == [("a", "hi")] and alone == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("{}", "a JSON array"),
        ('[{"instruction": "x"}]', r"row 1: lacks `output`"),
        ('[{"question_id": "x", "choices": []}]', "row 1: `choices`"),
        (
            '[{"uid": "x", "messages": [{"content": "x"}, {"content": "1"}]}]',
            "row 1: `messages` must end with",
        ),
        ('[{"instruction": "x", "output": "1"}, {"instruction": "x ", "output": "2"}]', "two answers to 'x'"),
        (
            '[{"instruction": "other", "output": "1"}]',
            "share no prompt: none of .* have the same instruction",
        ),
    ],
)
def test_a_file_that_cannot_serve_is_named(content: str, said: str, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        duels(of_run(run, model="aligned", set="talk", kind="greedy"), of_file(path))
    assert "given" in str(error.value)


def test_answers_without_a_shared_key_are_refused(tmp_path: Path) -> None:
    arena = Outputs("arena", "x", [Output("hi", id="a")], {})
    alpaca = Outputs("alpaca", "x", [Output("hi", instruction="Say hello.")], {})
    with pytest.raises(UserError, match="so they cannot be matched"):
        duels(arena, alpaca)
    with pytest.raises(UserError, match="neither has the instructions"):
        duels(arena, arena)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"model": "improved"}, "no model 'improved' was evaluated; it has start, aligned"),
        ({"set": "math"}, "no evaluation set 'math'; there are talk"),
        ({"kind": "sampled"}, "no sampled answers on 'talk'; take --answers greedy"),
    ],
)
def test_a_missing_model_set_or_answer_is_named(own: dict[str, Any], said: str, run: Path) -> None:
    asked: dict[str, Any] = {"model": "aligned", "set": "talk", "kind": "greedy"}
    with pytest.raises(UserError, match=said):
        of_run(run, **asked | own)
    with pytest.raises(UserError, match="not there; finish the run first"):
        outputs.sets_of_run(run.parent)
