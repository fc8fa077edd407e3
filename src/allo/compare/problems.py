"""The problems of a comparison: none is tuned or trained on and tested on, and every seed meets the same."""

from allo.errors import UserError
from allo.recipe import Recipe
from allo.recipe.sources import Source
from allo.sources import prompts_of


def check_problems(recipe: Recipe) -> None:
    """Raises `UserError` where test problems are also validation or training problems, or would differ by seed."""
    assert recipe.compare is not None
    sets: dict[str, Source] = {f"evaluate.sets.{name}": one for name, one in recipe.evaluate.sets.items()}
    if recipe.compare.resample:
        fixed = sets | {"compare.validation": recipe.compare.validation}
        for key, source in fixed.items():
            if source.order == "shuffled":
                raise UserError(
                    f"{key}.order: with compare.resample each seed would shuffle otherwise, and meet other problems. "
                    "Set order to given."
                )
    elsewhere = {"compare.validation": _ids(recipe, recipe.compare.validation)}
    if recipe.data.pairs is None:
        elsewhere["data"] = _ids(recipe, recipe.data)
    for key, source in sets.items():
        tested = _ids(recipe, source)
        for other, ids in elsewhere.items():
            if shared := tested & ids:
                raise UserError(
                    f"{key} and {other} share {len(shared)} problems, {min(shared)} among them: what is tested on may "
                    "be neither trained nor tuned on. Choose another split, or set skip and limit."
                )


def _ids(recipe: Recipe, source: Source) -> set[str]:
    return {prompt.id for prompt in prompts_of(recipe, source)}
