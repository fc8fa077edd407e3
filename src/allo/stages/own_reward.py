"""Rewards of the user's own functions for completions, batch by batch, resumed after an interruption."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allo.console import say
from allo.errors import UserError
from allo.files.batches import Batches
from allo.files.records import Prompt
from allo.models.load import Tokenizer
from allo.models.tokenization import bare_ids
from allo.recipe import Recipe
from allo.tasks.own_rewards import TRIED, Reward, Sample, gold, own_rewards, right_or_wrong

Key = tuple[str, str]  # the prompt's id and the completion


def sample_of(
    prompt: Prompt, text: str, token_ids: Sequence[int] | None, tokenizer: Tokenizer | None
) -> Sample:
    """Return a completion to judge. Without ids, as from a server, they are those of its text."""
    if token_ids is None:
        assert tokenizer is not None
        token_ids = bare_ids(tokenizer, text, place=f"prompt {prompt.id}")
    return Sample(prompt, text, list(token_ids))


def function_rewards(
    recipe: Recipe, samples: Iterable[Sample], *, path: Path, description: str
) -> tuple[dict[Key, Reward], Batches]:
    """Return the rewards by prompt id and text, and the part file, to discard once they are written.

    A batch has all distinct texts of its prompts. Raises `UserError` if no sample gets a verdict.
    """
    distinct = {(one.prompt.id, one.text): one for one in samples}
    by_prompt: dict[str, list[Sample]] = {}
    for (prompt_id, _), one in distinct.items():
        by_prompt.setdefault(prompt_id, []).append(one)
    batches: list[list[Sample]] = [[]]
    for group in by_prompt.values():
        if batches[-1] and len(batches[-1]) + len(group) > recipe.judge.batch_size:
            batches.append([])
        batches[-1] += group

    def rewarded(numbers: Iterator[int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        with own_rewards(recipe.judge, [one.prompt for one in distinct.values()]) as functions:
            for number in numbers:
                found = zip(batches[number], functions.combined(batches[number]), strict=True)
                yield number, [{"key": [one.prompt.id, one.text], "reward": reward} for one, reward in found]

    lines = Batches(path, len(batches), suffix=".function.part")
    lines.fill(rewarded, description)
    rewards: dict[Key, Reward] = {
        (row["key"][0], row["key"][1]): row["reward"] for batch in lines.rows() for row in batch
    }
    if all(reward is None for reward in rewards.values()):
        raise UserError(
            f"judge.function: {', '.join(recipe.judge.function)} returned None, no verdict, for each of {len(rewards)} "
            "completions; nothing can be learned or measured."
        )
    return rewards, lines


def try_functions(recipe: Recipe, sets: Mapping[str, Sequence[Prompt]], tokenizer: Tokenizer) -> None:
    """Call the functions on a few rows of each set, with the answer or solution of the row if it has one.

    Raises `UserError` naming the set if a call fails. You are told if no right answer gets more than a 0.
    """
    if not recipe.judge.function:
        return
    given = [prompt for prompts in sets.values() for prompt in prompts]
    if not given:
        raise UserError(
            "judge.function: nothing is judged by it. It is for samples, which ready pairs have none of, and for "
            "evaluation sets without `by_answer`: remove it."
        )
    with own_rewards(recipe.judge, given) as functions:
        for key, prompts in sets.items():
            tried = [sample_of(prompt, gold(prompt), None, tokenizer) for prompt in prompts[:TRIED]]
            try:
                rewards = functions.combined(tried) if tried else []
            except UserError as error:
                raise UserError(f"{error} It was tried on the first rows of {key}.") from error
            known = [reward for one, reward in zip(tried, rewards, strict=True) if one.text]
            if known and right_or_wrong(known) and not any(known):
                say(
                    f"judge.function: {key}: the right answers of the first {len(known)} rows are wrong by it, such as "
                    f"{tried[0].text[-60:]!r}"
                )
