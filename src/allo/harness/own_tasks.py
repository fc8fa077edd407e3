"""Our tasks in lm-eval: our rows and wording, judged by our verifiers. `tasks/*.yaml` name these functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allo.files.records import Completion, Prompt
from allo.stages.judge import verify
from allo.tasks.prompts import PromptSource, read_prompts

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "allo_"
FOLDER = Path(__file__).parent / "tasks"
EXAMPLES = "train"  # lm-eval requests this split even if it shows no examples
COLUMNS = ("id", "prompt", "answer", "solution", "choices", "task")


class Splits(dict[str, "Dataset"]):
    """A task's splits, each read on first use; without `examples`, `train` is empty."""

    def __init__(self, task: str, *, folder: Path | None, chat: bool, examples: bool) -> None:
        super().__init__()
        self._task, self._folder, self._chat, self._examples = task, folder, chat, examples

    def __missing__(self, split: str) -> "Dataset":
        from datasets import Dataset

        if split == EXAMPLES and not self._examples:
            return Dataset.from_list([])
        source = PromptSource(task=self._task, split=split, folder=self._folder)
        rows = [{name: getattr(prompt, name) for name in COLUMNS} for prompt in read_prompts(source)]
        if self._chat:  # as with `chat: true` in a recipe: a message does not end with a line break
            rows = [row | {"prompt": row["prompt"].strip()} for row in rows]
        self[split] = Dataset.from_list(rows)
        return self[split]


def splits(
    task: str, *, data_folder: str | None = None, chat: bool = False, examples: bool = True, **_: Any
) -> Splits:
    """Return a task's splits for lm-eval, from local rows in `data_folder` or otherwise from the hub.

    lm-eval passes all of a task's metadata, such as its version; other keys are ignored.
    """
    return Splits(task, folder=Path(data_folder) if data_folder else None, chat=chat, examples=examples)


def verdict(row: dict[str, Any], completions: Sequence[str]) -> dict[str, float]:
    """Return the accuracy on one problem: whether the final answer is right, as in a run's evaluation.

    The verifier is always the problem's own (`auto`), so that a standard task is the same for all models.
    """
    prompt = Prompt(**{name: row[name] for name in COLUMNS})
    [text] = completions
    completion = Completion(prompt.id, 0, text, finished=True, num_tokens=0)
    return {"acc": float(verify(prompt, completion).correct)}


def names() -> list[str]:
    """Return allo's tasks that have a file for lm-eval."""
    return sorted(path.stem for path in FOLDER.glob(f"{PREFIX}*.yaml"))


def is_own(name: str) -> bool:
    return name in names()
