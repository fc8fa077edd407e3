"""A run's answers in the file formats of AlpacaEval and Arena-Hard, for their tools to judge.

AlpacaEval's `model_outputs.json` is a JSON array of `instruction, output, generator`, and `dataset` if known; its
tool joins by the instruction's exact text. Arena-Hard's `model_answer` files are JSON lines, joined by the question's
id. Since 2.0, for every question set, its tool reads `uid, ans_id, model, messages, tstamp, metadata`; before, it
read `question_id, answer_id, model_id, choices, tstamp`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from allo.errors import UserError
from allo.files.artifacts import sha256_json
from allo.files.rows import Row
from allo.winrate.outputs import Output, Outputs, rows_of
from allo.winrate.style import style_metadata


@dataclass(frozen=True)
class Asked:
    """One question as the other project has it: its exact text, its id, and its part of the set."""

    text: str
    id: str | None
    dataset: str | None


def alpaca_eval(rows: Sequence[tuple[Output, Asked]], *, generator: str) -> str:
    """Return the text of a `model_outputs.json`."""
    listed = [
        {
            **({} if asked.dataset is None else {"dataset": asked.dataset}),
            "instruction": asked.text,
            "output": output.text.strip(),
            "generator": generator,
        }
        for output, asked in rows
    ]
    return json.dumps(listed, indent=1, ensure_ascii=False) + "\n"


def arena_hard(rows: Sequence[tuple[Output, Asked]], *, generator: str, answered: float) -> str:
    """Return a `model_answer/<generator>.jsonl` for Arena-Hard's tool before 2.0, sorted by id as theirs are.

    `answered` is in seconds since 1970; `token_len` counts the model's own tokens. Raises `UserError` for a question
    without id.
    """
    lines = [
        {
            "question_id": asked.id,
            "answer_id": _answer_id(output, asked, generator=generator),
            "model_id": generator,
            "choices": [
                {"index": 0, "turns": [{"content": output.text.strip(), "token_len": output.num_tokens}]}
            ],
            "tstamp": answered,
        }
        for output, asked in _by_id(rows)
    ]
    return _json_lines(lines)


def arena_hard_v2(rows: Sequence[tuple[Output, Asked]], *, generator: str, answered: float) -> str:
    """Return a `model_answer/<generator>.jsonl` for Arena-Hard's tool since 2.0; otherwise as `arena_hard`."""
    lines = []
    for output, asked in _by_id(rows):
        answer = output.text.strip()
        assert output.num_tokens is not None  # a run counts them
        lines.append(
            {
                "uid": asked.id,
                "ans_id": _answer_id(output, asked, generator=generator),
                "model": generator,
                "messages": [
                    {"role": "user", "content": asked.text},
                    {"role": "assistant", "content": {"answer": answer}},
                ],
                "tstamp": answered,
                "metadata": style_metadata(answer, num_tokens=output.num_tokens),
            }
        )
    return _json_lines(lines)


def _by_id(rows: Sequence[tuple[Output, Asked]]) -> list[tuple[Output, Asked]]:
    """Return the rows sorted by id. Raises `UserError` for a question without one."""
    if any(asked.id is None for _, asked in rows):
        raise UserError("a question has no id, which Arena-Hard needs; give its own question.jsonl.")
    return sorted(rows, key=lambda row: str(row[1].id))


def _answer_id(output: Output, asked: Asked, *, generator: str) -> str:
    return sha256_json([generator, asked.id, output.text])[:22]


def _json_lines(lines: Sequence[Row]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def as_asked(outputs: Outputs) -> list[tuple[Output, Asked]]:
    """Return each answer with the run's own instruction and id."""
    return [(row, Asked(row.instruction or "", row.id, None)) for row in outputs.rows]


def matched(outputs: Outputs, questions: Path) -> list[tuple[Output, Asked]]:
    """Return each answer with the file's question of the same instruction, ignoring surrounding whitespace.

    The file is AlpacaEval's `alpaca_eval.json` or Arena-Hard's `question.jsonl`. Raises `UserError` for an answer
    whose instruction the file lacks.
    """
    known = {asked.text.strip(): asked for asked in (_asked(row, place) for place, row in rows_of(questions))}
    alone = [row.id for row in outputs.rows if (row.instruction or "").strip() not in known]
    if alone:
        raise UserError(
            f"{questions}: lacks the questions of {len(alone)} of {len(outputs.rows)} answers, such as {alone[0]!r}; "
            f"is it the file of the set {outputs.set!r}?"
        )
    return [(row, known[(row.instruction or "").strip()]) for row in outputs.rows]


def _asked(row: Row, place: str) -> Asked:
    """Return a question from either project's file."""
    turns = row.get("turns")
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    text = row.get("instruction", row.get("prompt", first.get("content")))
    if not isinstance(text, str):
        raise UserError(f"{place}: has none of `instruction`, `prompt` and `turns`; found {', '.join(row)}.")
    id = row.get("question_id", row.get("uid"))
    return Asked(text, None if id is None else str(id), row.get("dataset"))
