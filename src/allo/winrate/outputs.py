"""Answers to judge: from a run's models, a set's own baseline, or a file of AlpacaEval's or Arena-Hard's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json, sha256_answers, sha256_file
from allo.files.evaluation import Evaluated, Evaluation, read_of_schema
from allo.files.records import Message
from allo.files.rows import Row, checked, read_rows, stem
from allo.recipe import load_recipe
from allo.tasks.answers.thoughts import USUAL
from allo.tasks.sources import Sources

Kind = Literal["greedy", "sampled"]
SOLUTION = "solution"
"""The name of a set's own baseline: each prompt's `solution`."""
_LONGEST_NAME = 60  # characters, as several names form one file name


@dataclass(frozen=True)
class Output:
    """One answer. A file may lack the id or the instruction, but not both."""

    text: str
    id: str | None = None
    instruction: str | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class Outputs:
    """One model's answers to a set. `name` is short enough for a file name; `origin` says where they are."""

    name: str
    set: str
    rows: list[Output]
    origin: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Return the hash of the ids and texts."""
        return sha256_answers((row.id, row.text) for row in self.rows)


@dataclass(frozen=True)
class Duel:
    """Two answers to one instruction."""

    id: str
    instruction: str
    model: str
    baseline: str


def sets_of_run(run: Path) -> list[str]:
    """Return the evaluation sets of a finished run."""
    return list(next(iter(_completions(run).values())))


def models_of_run(run: Path) -> list[str]:
    """Return the models that a finished run evaluated."""
    return list(_completions(run))


def of_run(run: Path, *, model: str, set: str, kind: Kind) -> Outputs:
    """Return a run's evaluated answers of one model: the greedy ones, or each prompt's first sample."""
    completions = _completions(run)
    if model not in completions:
        raise UserError(
            f"{run}: no model {model!r} was evaluated; it has {', '.join(completions)}. Name one of them, or set "
            "`evaluate.start` or `evaluate.forgotten` in the recipe."
        )
    if set not in completions[model]:
        raise UserError(f"{run}: no evaluation set {set!r}; there are {', '.join(completions[model])}.")
    rows = []
    for row in completions[model][set]:
        answer = row.greedy if kind == "greedy" else next(iter(row.sampled), None)
        if answer is None:
            raise UserError(
                f"{run}: {model} has no {kind} answers on {set!r}; take --answers "
                f"{'sampled' if kind == 'greedy' else 'greedy'}, or evaluate with them."
            )
        rows.append(Output(answer.text, row.prompt_id, said(row.prompt), answer.num_tokens))
    name = model if kind == "greedy" else f"{model}-{kind}"
    evaluation = RunFolder(run).evaluation
    origin = {"file": evaluation.name, "sha256": sha256_file(evaluation), "model": model, "answers": kind}
    return Outputs(name, set, rows, origin | {"run": _name_of(run)})


def solutions(run: Path, *, set: str) -> Outputs:
    """Return the set's own baseline; for AlpacaEval and Arena-Hard, the public baseline's replies."""
    recipe = load_recipe(run / "recipe.yaml")
    prompts = Sources(recipe).sets()[set]
    rows = [Output(prompt.solution, prompt.id, said(prompt.prompt)) for prompt in prompts if prompt.solution]
    if not rows:
        raise UserError(f"{run}: the prompts of {set!r} have no `solution` as a baseline; give a file.")
    return Outputs(SOLUTION, set, rows, {"solutions": set})


def of_file(path: Path) -> Outputs:
    """Read a file in AlpacaEval's form (`instruction`, `output`) or Arena-Hard's (`question_id`, `choices`).

    Arena-Hard's form since 2.0 has `uid` and `messages`. The file is of any type that rows are read from. Its name is
    the model's in its rows, otherwise its folder and file name, since AlpacaEval's files are all called
    `model_outputs.json`. Raises `UserError` naming a row that fits neither form.
    """
    read = rows_of(path)
    rows = [_output(row, place=place) for place, row in read]
    generators = [row.get("generator", row.get("model_id", row.get("model"))) for _, row in read]
    names = {each if isinstance(each, str) else "" for each in generators}
    generator = names.pop() if len(names) == 1 else ""
    folder = path.resolve().parent.name
    name = generator or f"{folder}-{stem(path)}"
    origin = {"file": path.name, "sha256": sha256_file(path)}
    return Outputs(name[:_LONGEST_NAME], stem(path), rows, origin)


def duels(model: Outputs, baseline: Outputs) -> tuple[list[Duel], int]:
    """Pair both sides' answers to each instruction, without thoughts; count the model's answers left unpaired.

    Answers are joined by id, or by instruction if any lacks an id. Raises `UserError` if nothing can be joined.
    """
    with_ids = all(row.id for row in (*model.rows, *baseline.rows))
    own, others = (_by_key(outputs, with_ids=with_ids) for outputs in (model, baseline))
    found = []
    for number, (key, row) in enumerate(own.items(), start=1):
        if key not in others:
            continue
        instruction = row.instruction or others[key].instruction
        if instruction is None:
            raise UserError(
                f"{model.name} and {baseline.name}: neither has the instructions; one of the two must be a run, or a "
                "file with `instruction`."
            )
        answers = (USUAL.spoken(one.text) for one in (row, others[key]))
        found.append(Duel(row.id or others[key].id or str(number), instruction, *answers))
    if not found:
        raise UserError(
            f"{baseline.name} and {model.name} share no prompt: none of {len(others)} and {len(own)} answers have "
            f"the same {'id' if with_ids else 'instruction'}."
        )
    return found, len(own) - len(found)


def said(prompt: str | Sequence[Message]) -> str:
    """Return a prompt as one text: one message's content, or several messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


class _Strict(BaseModel):
    """A row with strict types: nothing is converted, further columns are ignored."""

    model_config = ConfigDict(strict=True)


class AlpacaRow(_Strict):
    """A row of AlpacaEval's `model_outputs.json`."""

    instruction: str
    output: str


class ArenaTurn(_Strict):
    content: str


class ArenaChoice(_Strict):
    turns: list[ArenaTurn] = Field(min_length=1)


class ArenaRow(_Strict):
    """A line of a `model_answer` file of Arena-Hard before 2.0."""

    question_id: str
    choices: list[ArenaChoice] = Field(min_length=1)


class ArenaReply(_Strict):
    answer: str


class ArenaMessage(_Strict):
    content: str | ArenaReply


class ArenaRowV2(_Strict):
    """A line of a `model_answer` file of Arena-Hard since 2.0."""

    uid: str
    messages: list[ArenaMessage] = Field(min_length=2)


def _output(row: Row, *, place: str) -> Output:
    if "question_id" in row:
        arena = checked(ArenaRow, row, place=place)
        return Output(arena.choices[0].turns[0].content, arena.question_id)
    if "uid" in row and "instruction" not in row:
        newer = checked(ArenaRowV2, row, place=place)
        asked, replied = (message.content for message in newer.messages[-2:])
        if not isinstance(asked, str) or isinstance(replied, str):
            raise UserError(f"{place}: `messages` must end with the request's text and the `answer` to it.")
        return Output(replied.answer, newer.uid, asked)
    alpaca = checked(AlpacaRow, row, place=place)
    return Output(alpaca.output, instruction=alpaca.instruction)


def rows_of(path: Path) -> list[tuple[str, Row]]:
    """Return a file's rows, each with its place for errors; see `rows.read_rows`."""
    return [(place, row) for _, place, row in read_rows(path)]


def _by_key(outputs: Outputs, *, with_ids: bool) -> dict[str, Output]:
    """Return the rows by id or instruction. Raises `UserError` for a row without one, and for repeated ones."""
    found: dict[str, Output] = {}
    for row in outputs.rows:
        key = row.id if with_ids else (row.instruction or "").strip()
        if not key:
            raise UserError(
                f"{outputs.name} has answers without instruction, and the other side's have no ids, so they cannot be "
                "matched."
            )
        if key in found:
            raise UserError(f"{outputs.name}: two answers to {key[:60]!r}; keep one of them.")
        found[key] = row
    return found


def _completions(run: Path) -> dict[str, dict[str, list[Evaluated]]]:
    path = RunFolder(run).evaluation
    if not path.is_file():
        raise UserError(f"{path}: not there; finish the run first: `allo run {run / 'recipe.yaml'}`.")
    found = read_of_schema(path, Evaluation).completions
    if not found:
        raise UserError(f"{path}: holds no completions; evaluate the run again.")
    return found


def _name_of(run: Path) -> str:
    manifest = RunFolder(run).manifest
    content = read_json(manifest) if manifest.is_file() else None
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else run.resolve().name
