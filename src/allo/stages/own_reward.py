"""Rewards of the user's own functions for completions, batch by batch, resumed after an interruption."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from allo.console import track
from allo.errors import UserError
from allo.files.artifacts import ResumableLines
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
) -> tuple[dict[Key, Reward], ResumableLines]:
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
    lines = ResumableLines(path, suffix=".function.part")
    done = len(lines.batches)
    if done < len(batches):
        with own_rewards(recipe.judge, [one.prompt for one in distinct.values()]) as functions:
            for batch in track(batches[done:], description, total=len(batches), done=done):
                found = functions.combined(batch)
                lines.append(
                    [
                        {"key": [one.prompt.id, one.text], "reward": reward}
                        for one, reward in zip(batch, found, strict=True)
                    ]
                )
    rewards: dict[Key, Reward] = {(row["key"][0], row["key"][1]): row["reward"] for row in lines.rows()}
    if all(reward is None for reward in rewards.values()):
        raise UserError(
            f"judge.function: {', '.join(recipe.judge.function)} returned None, no verdict, for each of {len(rewards)} "
            "completions; nothing can be learned or measured."
        )
    return rewards, lines
