"""The parts that benchmarks share: reading rows, wording problems, and writing the demonstrations that are taught."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from allo.errors import UserError
from allo.files.records import Message, Prompt
from allo.files.rows import Row, checked, hub_file_rows, hub_rows, read_rows

WORDED = re.compile(
    r"Question: (.*?)\n(?:Options:\n.*\n)?"
    r'Think step by step, and end with "The answer is" and the (?:right option|final answer)\.',
    re.DOTALL,
)


class Problem(BaseModel):
    """One problem, before wording. `solution` is its rationale, without the line of the final answer.

    An instruction has nothing but `answer`, the baseline's reply.
    """

    model_config = ConfigDict(strict=True)

    id: str
    question: str
    answer: str
    choices: list[str] | None = None
    solution: str | None = None


@dataclass(frozen=True)
class Hub:
    """A data set on the hub. `configs` are read one after another; `splits` maps our names to the hub's."""

    id: str
    configs: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)

    def rows(self, split: str) -> Iterator[tuple[str, Row]]:
        """Yield `(place, row)` of one of our splits."""
        for config in self.configs or (None,):
            for _, place, row in hub_rows(self.id, self.splits.get(split, split), config=config):
                yield place, row


@dataclass(frozen=True)
class HubFile:
    """One file of JSON objects in a data set on the hub, which is the whole split `test`."""

    id: str
    name: str

    def rows(self, split: str) -> Iterator[tuple[str, Row]]:
        """Yield `(place, row)`. Raises `UserError` for another split."""
        if split != "test":
            raise UserError(f"{self.id} has no split {split!r}; it has `test` alone.")
        for _, place, row in hub_file_rows(self.id, self.name):
            yield place, row


def load(
    task: str,
    split: str,
    *,
    folder: Path | None = None,
    hub: Hub | HubFile,
    from_hub: Callable[[Row], Row],
    instructions: bool = False,
) -> Iterator[Prompt]:
    """Return the prompts of one split, from `<folder>/<task>/<split>.jsonl[.gz]`, or from the hub without a folder.

    `from_hub` turns a row of the hub into the columns of `Problem`, except the id; rows of a folder have these columns
    already. The `answer` to `instructions` is a baseline's reply, for a judge to compare with. Raises `UserError` for a
    missing folder, file or column, for damaged rows, and for two rows with one id.
    """
    if folder is None:
        problems = _hub_problems(task, split, hub, from_hub)
    else:
        problems = _folder_problems(task, split, folder)
    made = as_instruction if instructions else to_prompt
    return distinct((place, made(problem, task=task)) for place, problem in problems)


def load_folder(task: str, split: str, *, folder: Path) -> Iterator[Prompt]:
    """Return the prompts of a task that is on no hub; see `load`."""
    problems = _folder_problems(task, split, folder)
    return distinct((place, to_prompt(problem, task=task)) for place, problem in problems)


def distinct(prompts: Iterable[tuple[str, Prompt]]) -> Iterator[Prompt]:
    """Yield the prompts of `(place, prompt)`. Raises `UserError` that names both places if two share an id."""
    places: dict[str, str] = {}
    for place, prompt in prompts:
        if prompt.id in places:
            raise UserError(
                f"{place}: the id {prompt.id!r} is that of {places[prompt.id]} too; ids must differ."
            )
        places[prompt.id] = place
        yield prompt


def to_prompt(problem: Problem, *, task: str) -> Prompt:
    """Word the problem, with its demonstration as `solution`."""
    return Prompt(
        id=problem.id,
        prompt=word(problem.question, problem.choices),
        answer=problem.answer,
        solution=demonstrate(problem.answer, problem.solution),
        choices=problem.choices,
        task=task,
    )


def as_instruction(problem: Problem, *, task: str) -> Prompt:
    """Return the instruction unchanged. It has no right answer; `solution` is the baseline's reply."""
    return Prompt(id=problem.id, prompt=problem.question, solution=problem.answer, task=task)


def word(question: str, choices: list[str] | None) -> str:
    """Return the text that the model is shown. It ends with a line break, after which the completion begins."""
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


def question_of(prompt: str | list[Message]) -> str:
    """Return the question inside the wording of `word`; for any other prompt, the whole last message."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    worded = WORDED.fullmatch(text.strip())
    return worded[1] if worded else text


def demonstrate(answer: str, rationale: str | None) -> str:
    """Return the text that fine-tuning teaches: the rationale, if there is one, then the final answer on one line."""
    final = f"The answer is {' '.join(answer.split()).removesuffix('.')}."
    return f"{rationale.strip()}\n{final}" if rationale and rationale.strip() else final


def keyed_choice(choices: dict[str, list[str]], key: str) -> str:
    """Return the text of the option labelled `key`; the hub writes options as `{"text": [...], "label": [...]}`."""
    return choices["text"][choices["label"].index(key)]


def _folder_problems(task: str, split: str, folder: Path) -> Iterator[tuple[str, Problem]]:
    rows = read_rows(_split_file(Path(folder), task, split))
    return ((place, checked(Problem, row, place=place)) for _, place, row in rows)


def _hub_problems(
    task: str, split: str, hub: Hub | HubFile, from_hub: Callable[[Row], Row]
) -> Iterator[tuple[str, Problem]]:
    for number, (place, row) in enumerate(hub.rows(split)):
        try:
            columns = from_hub(row)
        except (KeyError, TypeError, ValueError) as error:
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
