"""Make preference pairs, and the set of wrong completions to forget."""

from typing import Any

from allo.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.core.pairs import make_pairs, wrong_completions
from allo.errors import DivergedError
from allo.recipe import Recipe
from allo.records import Pair, Verdict, Wrong
from allo.rounds import RoundRecipe
from allo.sources import training_pairs, training_prompts


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    if recipe.data.pairs is not None:
        pairs = training_pairs(recipe)
        wrong = _rejected(pairs)
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


def _rejected(pairs: list[Pair]) -> list[Wrong]:
    """The distinct rejected completions of ready pairs, each with the ones preferred to it."""
    wrong: dict[tuple[str, str], Wrong] = {}
    for pair in pairs:
        key = (str(pair.prompt), pair.rejected)
        if key in wrong:
            wrong[key].right.append(pair.chosen)
            continue
        wrong[key] = Wrong(
            id=f"{pair.prompt_id}-rejected-{len(wrong)}",
            prompt_id=pair.prompt_id,
            prompt=pair.prompt,
            completion=pair.rejected,
            finished=pair.rejected_finished,
            solution=pair.chosen,
            right=[pair.chosen],
        )
    return list(wrong.values())
