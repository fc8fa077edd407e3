"""What the benchmarks share: where rows come from, how they are worded, how they are taught."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from allo.errors import UserError
from allo.records import Prompt
from allo.rows import checked, hub_rows, read_rows


class Task(Protocol):
    """What a module of this package offers."""

    def load(self, split: str, *, folder: Path | None = None) -> Iterator[Prompt]: ...


class Problem(BaseModel):
    """One problem, before wording. `solution` is its rationale, without the final answer's line."""

    model_config = ConfigDict(strict=True)

    id: str
    question: str
    answer: str
    choices: list[str] | None = None
    solution: str | None = None


@dataclass(frozen=True)
class Hub:
    """A data set on the hub. `splits` renames splits: ours -> the hub's."""

    id: str
    config: str | None = None
    splits: dict[str, str] = field(default_factory=dict)


def load(
    task: str,
    split: str,
    *,
    folder: Path | None,
    hub: Hub,
    from_hub: Callable[[dict[str, Any]], dict[str, Any]],
) -> Iterator[Prompt]:
    """The prompts of one split, from `<folder>/<task>/<split>.jsonl[.gz]` or else from the hub.

    `from_hub` turns a row of the hub into the columns of `Problem` but for the id. Rows of a folder have
    them already. Raises `UserError` for a missing folder, file or column, for damaged rows, and for two
    rows with one id.
    """
    if folder is None:
        problems = _hub_problems(task, split, hub, from_hub)
    else:
        path = _split_file(Path(folder), task, split)
        problems = ((place, checked(Problem, row, place=place)) for _, place, row in read_rows(path))
    return distinct((place, to_prompt(problem, task=task)) for place, problem in problems)


def distinct(prompts: Iterable[tuple[str, Prompt]]) -> Iterator[Prompt]:
    """The prompts of `(place, prompt)`. Raises `UserError` naming both places of two that have one id."""
    places: dict[str, str] = {}
    for place, prompt in prompts:
        if prompt.id in places:
            raise UserError(
                f"{place}: the id {prompt.id!r} is that of {places[prompt.id]} too; ids must differ."
            )
        places[prompt.id] = place
        yield prompt


def to_prompt(problem: Problem, *, task: str) -> Prompt:
    """The problem in words, with its demonstration as `solution`."""
    return Prompt(
        id=problem.id,
        prompt=word(problem.question, problem.choices),
        answer=problem.answer,
        solution=demonstrate(problem.answer, problem.solution),
        choices=problem.choices,
        task=task,
    )


def word(question: str, choices: list[str] | None) -> str:
    """The text that the model is shown; it ends with a line break, where the completion begins."""
    if choices is None:
        return (
            f"Question: {question.strip()}\n"
            'Think step by step, and end with "The answer is" and the final answer.\n'
        )
    options = "\n".join(f"- {choice.strip()}" for choice in choices)
    return (
        f"Question: {question.strip()}\nOptions:\n{options}\n"
        'Think step by step, and end with "The answer is" and the right option.\n'
    )


def demonstrate(answer: str, rationale: str | None) -> str:
    """What fine-tuning teaches: the rationale, where there is one, then the final answer."""
    final = f"The answer is {answer.strip().removesuffix('.')}."
    return f"{rationale.strip()}\n{final}" if rationale and rationale.strip() else final


def keyed_choice(choices: dict[str, list[str]], key: str) -> str:
    """The text of the option labelled `key`, in the hub's form of options: `{"text": [...], "label": [...]}`."""
    return choices["text"][choices["label"].index(key)]


def _hub_problems(
    task: str, split: str, hub: Hub, from_hub: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[tuple[str, Problem]]:
    rows = hub_rows(hub.id, hub.splits.get(split, split), config=hub.config)
    for number, place, row in rows:
        try:
            columns = from_hub(row)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{place}: not the columns that `{task}` expects ({error!r}; found {', '.join(sorted(row))}). "
                "Has the set changed? Give the rows as a local folder instead."
            ) from error
        yield place, checked(Problem, {"id": f"{task}-{split}-{number}", **columns}, place=place)


def _split_file(folder: Path, task: str, split: str) -> Path:
    expected = f"expected {folder / task / split}.jsonl or .jsonl.gz"
    if not (folder / task).is_dir():
        missing = folder / task if folder.is_dir() else folder
        raise UserError(f"{missing}: there is no such folder; {expected}.")
    files = {
        path.name.removesuffix(".gz").removesuffix(".jsonl"): path
        for path in sorted((folder / task).iterdir(), reverse=True)  # the plain file wins over its .gz
        if path.name.endswith((".jsonl", ".jsonl.gz"))
    }
    if split not in files:
        found = ", ".join(sorted(files)) or "none"
        raise UserError(f"{folder / task}: has no split {split!r}; {expected}. Splits found: {found}.")
    return files[split]
