"""Rewards of the user's own functions for completions, batch by batch, resumed after an interruption."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from allo.errors import UserError
from allo.files.batches import Batches
from allo.files.records import Prompt
from allo.models.load import Tokenizer
from allo.models.tokenization import bare_ids
from allo.recipe import Recipe
from allo.tasks.own_rewards import Reward, Sample, own_rewards

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
