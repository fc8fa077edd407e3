"""Single right answers to learn: gold solutions, or the policy's own right samples."""

from collections.abc import Iterable
from typing import Any

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.records import Feedback, Pair, Prompt, Verdict
from allo.recipe import Recipe
from allo.tasks.feedback import answer_rows
from allo.tasks.pairing import answer_row, distinct
from allo.tasks.sources import training_prompts


def demonstrations(prompts: Iterable[Prompt]) -> list[dict[str, Any]]:
    """Return the existing solutions of prompts as rows for a trainer."""
    return [
        {"id": prompt.id, "prompt": prompt.prompt, "template": prompt.template, "completion": prompt.solution}
        for prompt in prompts
        if prompt.solution
    ]


def gold_solutions(recipe: Recipe, folder: RunFolder) -> list[dict[str, Any]]:
    """Return the solutions of the prompts that have a pair. Raises `UserError` if there are none."""
    paired = {pair.prompt_id for pair in read_jsonl(folder.pairs, Pair)}
    rows = demonstrations(prompt for prompt in training_prompts(recipe) if prompt.id in paired)
    if not rows:
        raise UserError(
            f"improve.loss: sft learns the gold solutions of the {len(paired)} prompts with a pair, and none has "
            "a `solution`: choose rft, or data that has solutions."
        )
    return rows


def right_samples(recipe: Recipe, folder: RunFolder) -> list[dict[str, Any]]:
    """Return every distinct right sample that ended by itself; for ready rows, every distinct chosen or good answer."""
    if recipe.data.feedback is not None:
        return answer_rows(read_jsonl(folder.feedback, Feedback), label=True)
    if recipe.data.pairs is not None:
        chosen = {
            repr((pair.prompt, pair.template, pair.chosen, pair.chosen_message)): pair
            for pair in read_jsonl(folder.pairs, Pair)
        }
        return [answer_row(pair, "chosen") for pair in chosen.values()]
    prompts = {prompt.id: prompt for prompt in training_prompts(recipe)}
    return [
        {
            "prompt": prompts[verdict.prompt_id].prompt,
            "template": prompts[verdict.prompt_id].template,
            "completion": verdict.text,
            "completion_ids": verdict.token_ids,
        }
        for verdict in distinct(read_jsonl(folder.verdicts, Verdict))
        if verdict.correct and verdict.finished
    ]


def check_solutions(prompts: Iterable[Prompt]) -> None:
    """Raise `UserError` if no prompt has a gold solution."""
    if not any(prompt.solution for prompt in prompts):
        raise UserError(
            "improve.loss: sft learns gold solutions, and no prompt of `data` has a `solution`: choose rft, or data "
            "that has solutions."
        )
