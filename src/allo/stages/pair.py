"""Make preference pairs, and the set of wrong completions to forget."""

from typing import Any

from allo.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.core.pairs import make_pairs, rejected_completions, wrong_completions
from allo.core.rewards import ranked_pairs
from allo.errors import DivergedError
from allo.recipe import Recipe
from allo.records import Pair, Verdict, Wrong
from allo.rounds import RoundRecipe
from allo.sources import training_pairs, training_prompts


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    if recipe.data.pairs is not None:
        pairs = training_pairs(recipe)
        wrong = rejected_completions(pairs, solutions={})
    elif recipe.judge.reward_model is not None:
        pairs, wrong = _by_reward(recipe, run)
    else:
        prompts, verdicts = training_prompts(recipe), read_jsonl(run.verdicts, Verdict)
        pairs = make_pairs(
            prompts, verdicts, max_pairs_per_prompt=recipe.pair.max_pairs_per_prompt, seed=recipe.seed_of_data
        )
        wrong = wrong_completions(prompts, verdicts)
    if isinstance(recipe, RoundRecipe) and recipe.number > 1 and not pairs:
        raise DivergedError(
            f"round {recipe.number}: no prompt has both a right and a wrong sample. Lower the learning rates, or "
            "the number of rounds."
        )
    write_jsonl(run.wrong, wrong)
    write_jsonl(run.pairs, pairs)
    return {"pairs": len(pairs), "wrong": len(wrong), "prompts": len({pair.prompt_id for pair in pairs})}


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
