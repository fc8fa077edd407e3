"""A recipe's rows as token ids, made exactly as the stages will make them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allo.errors import UserError
from allo.files.records import Feedback, Pair, Prompt
from allo.models.load import Tokenizer
from allo.models.rows import Counts, counted_completions, counted_pairs
from allo.models.templates import Chat
from allo.models.tokenization import cut_left, prompt_ids
from allo.recipe import Recipe
from allo.recipe.kinds import SOLUTIONS
from allo.recipe.losses import ANSWER_LOSSES
from allo.stages.pair import with_own_ids
from allo.stages.right_answers import check_solutions, demonstrations
from allo.tasks.feedback import Labels
from allo.tasks.sources import Ready, Sources


@dataclass(frozen=True)
class Trained:
    """A trainer's rows as token ids, under their key in the recipe.

    `read` counts the rows before any were dropped. `forms` are those of their prompts. `without` counts the prompts
    without a solution, which have no row. `labels` says how many completions are good and bad, if they are labelled.
    """

    key: str
    read: int
    rows: list[dict[str, Any]]
    counts: Counts
    forms: frozenset[str]
    without: int = 0
    labels: str = ""


@dataclass(frozen=True)
class Asked:
    """Prompts for the model to complete, as token ids under their key; `cut` of them lose their beginning.

    `forms` holds "text" or "messages". `judged` says how the answers are used.
    """

    key: str
    ids: list[list[int]]
    cut: int
    forms: frozenset[str]
    judged: str


def asked(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], room: int, *, key: str, judged: str
) -> tuple[Asked, list[int]]:
    """Return the prompts as token ids, each cut to `room`, and their uncut lengths.

    Raises `UserError` for the first prompt that the chat template rejects or does not render completely.
    """
    whole = [_ids(tokenizer, prompt) for prompt in prompts]
    ids = [cut_left(tokenizer, each, room) for each in whole]
    lengths = [len(each) for each in whole]
    return Asked(key, ids, sum(length > room for length in lengths), _forms(prompts), judged), lengths


def _forms(rows: Sequence[Prompt | Pair | Feedback]) -> frozenset[str]:
    return frozenset("text" if isinstance(row.prompt, str) else "messages" for row in rows)


def _ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Return a prompt's ids, having checked that the template can also render an answer to it."""
    place, text = f"prompt {prompt.id}", prompt.prompt
    if not isinstance(text, str):
        text = Chat(tokenizer, text, prompt.template, place).turn().prompt
    return prompt_ids(tokenizer, text, place=place)


def trained_ready(recipe: Recipe, tokenizer: Tokenizer, given: Sequence[Ready], *, key: str) -> Trained:
    """Return ready pairs or labelled completions under `key` as the trainers read them.

    Raises `UserError` if none is left.
    """
    ready = with_own_ids(recipe, list(given), lambda: tokenizer)
    labelled = [row for row in ready if isinstance(row, Feedback)]
    count = counted_completions if labelled else counted_pairs
    rows, counts = _under(key, count, tokenizer, [vars(row) for row in ready], recipe.max_length)
    labels = Labels.of(labelled).words if labelled else ""
    return Trained(key, len(ready), rows, counts, _forms(given), labels=labels)


def trained_feedback(recipe: Recipe, tokenizer: Tokenizer, given: Sequence[Feedback]) -> Trained:
    """Return the labelled completions to train on. Raises `UserError` if a stage has none with the label that it needs."""
    learns_good = recipe.improve is not None and recipe.improve.loss in ANSWER_LOSSES
    for label, is_needed, stage in (
        (
            False,
            recipe.forget is not None,
            "forget learns from bad ones: add some, or set forget and score to null",
        ),
        (True, learns_good, "improve.loss rft learns good ones: add some, or set improve to null"),
    ):
        if is_needed and not any(row.label == label for row in given):
            raise UserError(
                f"data.feedback: all {len(given)} completions to train on are {'bad' if label else 'good'}, and {stage}."
            )
    return trained_ready(recipe, tokenizer, given, key="data.feedback")


def trained_solutions(recipe: Recipe, tokenizer: Tokenizer, sources: Sources) -> list[Trained]:
    """Return the gold solutions for fine-tuning and for the loss `sft`. Raises `UserError` if none is left."""
    found: dict[str, list[Prompt]] = {}
    if recipe.sft is not None:
        found["sft"] = [prompt for source in recipe.sft.sources for prompt in sources.prompts(source)]
    if recipe.improve is not None and SOLUTIONS in recipe.improve.sees:
        found["improve"] = sources.prompts(recipe.data)
        check_solutions(found["improve"])
    return [_solutions(recipe, tokenizer, key, prompts) for key, prompts in found.items()]


def _solutions(recipe: Recipe, tokenizer: Tokenizer, key: str, prompts: Sequence[Prompt]) -> Trained:
    given = demonstrations(prompts)
    if not given:
        raise UserError(f"{key}: none of its {len(prompts)} prompts has a `solution` to learn; add it.")
    rows, counts = _under(key, counted_completions, tokenizer, given, recipe.max_length)
    return Trained(key, len(given), rows, counts, _forms(prompts), without=len(prompts) - len(given))


def _under(
    key: str, count: Any, tokenizer: Tokenizer, rows: list[dict[str, Any]], max_length: int
) -> tuple[list[dict[str, Any]], Counts]:
    """Return the rows of `count`; its errors begin with the prompt or, if they concern all rows, with the key."""
    try:
        kept, counts = count(tokenizer, rows, max_length=max_length)
    except UserError as error:
        if str(error).startswith("prompt "):
            raise
        raise UserError(f"{key}: {error}") from error
    return kept, counts
