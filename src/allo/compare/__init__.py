"""Comparisons: many methods from one recipe, tuned alike on the same samples, tested on the same problems."""

import importlib

from pydantic import ValidationError

from allo.compare.methods import chosen
from allo.compare.problems import check_problems
from allo.compare.summary import write_summary
from allo.compare.trials import RATE, Comparison, Trial
from allo.compare.tuning import Result, next_trials, tuned
from allo.compare.workers import workers
from allo.errors import UserError
from allo.files.artifacts import held
from allo.ranks import is_joined
from allo.recipe import Recipe


def compare(
    recipe: Recipe, *, methods: list[str] | None = None, seeds: list[int] | None = None, jobs: int = 1
) -> Comparison:
    """Tune each method, test it with each seed, and summarise; finished trials are read from their files.

    If the reference was never tested, the first method takes its place in the summary. Raises `UserError` if the
    recipe has no `compare` block, for an unknown method, and for changes that give no valid recipe.
    """
    if jobs > 1 and is_joined():
        raise UserError(
            f"--jobs {jobs}: several processes share each trial already; leave it out, or --processes."
        )
    if recipe.compare is None:
        raise UserError("compare: the recipe has no `compare` block. Give it at least `compare.validation`.")
    recipe = _with_seeds(recipe, seeds) if seeds else recipe
    block = recipe.compare
    assert block is not None
    competing = chosen(block, methods)
    tuning = [method for method in competing if method.tuned_as is None]
    check_problems(recipe)
    for method in competing:  # find errors before the first trial
        trial = Trial(method, {RATE: block.rates[0]}, block.seeds[0], "test")
        importlib.import_module("allo.stages.check").check(trial.recipe(recipe))
    comparison = Comparison(recipe.out / recipe.name)

    def result(trial: Trial) -> Result | None:
        return comparison.result(trial, trial.recipe(recipe))

    with held(comparison.path), workers(comparison, jobs=jobs) as working:
        while trials := [trial for method in tuning for trial in next_trials(method, block, result)]:
            working.run(trials, recipe)
        settings = {method.name: tuned(method, block, result) for method in tuning}
        tests = [
            Trial(method, settings[method.tuned_as or method.name], seed, "test")
            for method in competing
            for seed in block.seeds
        ]
        comparison.set_aside_other_tests(tests)
        working.run(tests, recipe)
    tested = [method.name for method in competing]
    has_reference = block.reference in tested or comparison.has_tests_of(block.reference)
    write_summary(comparison.path, reference=block.reference if has_reference else tested[0])
    return comparison


def _with_seeds(recipe: Recipe, seeds: list[int]) -> Recipe:
    assert recipe.compare is not None
    try:
        block = type(recipe.compare).model_validate(recipe.compare.model_dump() | {"seeds": seeds})
    except ValidationError as error:
        raise UserError(f"--seeds: {error.errors()[0]['msg']}") from error
    return recipe.model_copy(update={"compare": block})
