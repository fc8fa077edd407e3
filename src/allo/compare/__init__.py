"""Comparisons: many methods from one recipe, on the same samples, tuned alike, tested on the same problems."""

from allo.compare.methods import chosen
from allo.compare.summary import write_summary
from allo.compare.trials import Comparison, Trial
from allo.compare.tuning import Result, first_wave, second_wave, tuned
from allo.compare.workers import workers
from allo.errors import UserError
from allo.recipe import Recipe


def compare(
    recipe: Recipe, *, methods: list[str] | None = None, seeds: list[int] | None = None, jobs: int = 1
) -> Comparison:
    """Tune each method, test it with each seed, sum up; what is done already is taken from its file.

    Where the reference was never tested, the first of the methods stands in for it in the summary.

    Raises `UserError` where the recipe has no `compare` block, for an unknown method, and where a method's
    changes make no recipe.
    """
    if recipe.compare is None:
        raise UserError("compare: the recipe has no `compare` block. Give it at least `compare.validation`.")
    block = recipe.compare
    if seeds:
        block = type(block).model_validate(block.model_dump() | {"seeds": seeds})
        recipe = recipe.model_copy(update={"compare": block})
    competing = chosen(block, methods)
    tuning = [method for method in competing if method.tuned_as is None]
    comparison = Comparison(recipe.out / recipe.name)

    def result(trial: Trial) -> Result:
        found = comparison.result(trial, trial.recipe(recipe))
        assert found is not None, trial.name
        return found

    with workers(comparison, jobs=jobs) as working:
        working.run([trial for method in tuning for trial in first_wave(method, block)], recipe)
        working.run([trial for method in tuning for trial in second_wave(method, block, result)], recipe)
        settings = {method.name: tuned(method, block, result) for method in tuning}
        working.run(
            [
                Trial(method, settings[method.tuned_as or method.name], seed, "test")
                for method in competing
                for seed in block.seeds
            ],
            recipe,
        )
    tested = [method.name for method in competing]
    has_reference = block.reference in tested or comparison.has_tests_of(block.reference)
    write_summary(comparison.path, reference=block.reference if has_reference else tested[0])
    return comparison
