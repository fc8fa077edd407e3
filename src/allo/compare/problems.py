"""The problems of a comparison: test problems are never tuned or trained on, and are the same for every seed."""

from collections.abc import Sequence

from allo.errors import UserError
from allo.files.records import Prompt
from allo.recipe import Recipe
from allo.recipe.sources import EvaluationSet
from allo.tasks.own_rewards import TRIED, Sample, gold, own_rewards, right_or_wrong
from allo.tasks.sources import prompts_of


def check_problems(recipe: Recipe) -> None:
    """Refuse test problems that are also validation or training problems, differ by seed, or have no answer."""
    assert recipe.compare is not None
    sets = {f"evaluate.sets.{name}": one for name, one in recipe.evaluate.sets.items()}
    if recipe.compare.resample:
        fixed = sets | {"compare.validation": recipe.compare.validation}
        for key, source in fixed.items():
            if source.order == "shuffled":
                raise UserError(
                    f"{key}.order: with compare.resample each seed would shuffle differently and use other problems. "
                    "Set order to given."
                )
    if not sets:
        raise UserError(
            "evaluate.sets: a comparison is of accuracies on test problems, and the recipe names none: add a set."
        )
    validation = prompts_of(recipe, recipe.compare.validation)
    _check_verdicts("compare.validation", recipe.compare.validation, validation, recipe)
    elsewhere = {"compare.validation": _ids(validation)}
    if not recipe.data.is_ready:
        elsewhere["data"] = _ids(prompts_of(recipe, recipe.data))
    for key, source in sets.items():
        prompts = prompts_of(recipe, source)
        _check_verdicts(key, source, prompts, recipe)
        tested = _ids(prompts)
        for other, ids in elsewhere.items():
            if shared := tested & ids:
                raise UserError(
                    f"{key} and {other} share {len(shared)} problems, such as {min(shared)}: test problems must not be "
                    "used for training or tuning. Choose another split, or set skip and limit."
                )


def _check_verdicts(key: str, source: EvaluationSet, prompts: Sequence[Prompt], recipe: Recipe) -> None:
    """Refuse prompts whose answers will be neither right nor wrong, as far as a few calls of a function tell."""
    if recipe.judge.function and not source.by_answer:
        with own_rewards(recipe.judge, prompts) as functions:
            rewards = functions.combined([Sample(one, gold(one), [0]) for one in prompts[:TRIED]])
        if not right_or_wrong(rewards):
            raise UserError(
                f"{key}: judge.function returned {next(one for one in rewards if one not in (0, 1, None))}, and a comparison is "
                "of right (1) and wrong (0), not of other rewards. Compare by a function that returns these two."
            )
        return
    for prompt in prompts:
        if prompt.answer is None:
            raise UserError(
                f"{key}: prompt {prompt.id} has no `answer`, but a comparison needs accuracies, not rewards. Choose a "
                "set that has answers."
            )


def _ids(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.id for prompt in prompts}
