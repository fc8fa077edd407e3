"""Make preference pairs, and the set of wrong completions to forget."""

from typing import Any

from allo.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.core.pairs import make_pairs, rejected_completions, wrong_completions
from allo.core.rewards import ranked_pairs
from allo.errors import DivergedError, UserError
from allo.recipe import Recipe
from allo.records import Pair, Verdict, Wrong
from allo.rounds import RoundRecipe
from allo.sources import training_pairs, training_prompts


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    try:
        pairs, wrong = _pairs_and_wrong(recipe, run)
    except UserError as error:
        if isinstance(recipe, RoundRecipe) and recipe.number > 1:  # the first round's model had them
            raise DivergedError(
                f"round {recipe.number}: {error} Or lower the learning rates, or the number of rounds."
            ) from error
        raise
    write_jsonl(run.wrong, wrong)
    write_jsonl(run.pairs, pairs)
    return {"pairs": len(pairs), "wrong": len(wrong), "prompts": len({pair.prompt_id for pair in pairs})}


def _pairs_and_wrong(recipe: Recipe, run: RunFolder) -> tuple[list[Pair], list[Wrong]]:
    """Raises `UserError` where there is no pair, or nothing wrong."""
    if recipe.data.pairs is not None:
        ready = training_pairs(recipe)
        return ready, rejected_completions(ready, solutions={})
    if recipe.judge.reward_model is not None:
        return _by_reward(recipe, run)
    prompts, verdicts = training_prompts(recipe), read_jsonl(run.verdicts, Verdict)
    pairs = make_pairs(
        prompts, verdicts, max_pairs_per_prompt=recipe.pair.max_pairs_per_prompt, seed=recipe.seed_of_data
    )
    return pairs, wrong_completions(prompts, verdicts)


def _by_reward(recipe: Recipe, run: RunFolder) -> tuple[list[Pair], list[Wrong]]:
    """Nothing is wrong by itself here: to be forgotten is what a pair rejects."""
    prompts = training_prompts(recipe)
    pairs = ranked_pairs(
        prompts,
        read_jsonl(run.verdicts, Verdict),
        max_pairs_per_prompt=recipe.pair.max_pairs_per_prompt,
        margin=recipe.pair.margin,
    )
    solutions = {prompt.id: prompt.solution for prompt in prompts if prompt.solution is not None}
    return pairs, rejected_completions(pairs, solutions=solutions)
