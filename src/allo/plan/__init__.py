"""The memory that each stage of a recipe takes, before weights are downloaded or anything runs."""

import gc

from allo.pipeline import stages_of
from allo.plan.memory import Plan, StagePlan
from allo.recipe import Recipe
from allo.recipe.backends import BACKENDS


def plan(recipe: Recipe, *, limit: int | None = None) -> Plan:
    """Plan every stage that runs a model; with `limit` bytes, advise on stages that take more.

    A stage that uses another library, servers or a model of its own is listed, but not planned. Raises `UserError` if
    the model's configuration cannot be read.
    """
    from allo.plan.advice import advise

    names = stages_that_run_the_model(recipe)
    unplanned = {stage: why for stage, why in _elsewhere(recipe).items() if stage in names}
    gc.freeze()  # modules are not looked through again and again
    try:
        stages = tuple(plan_stage(recipe, name) for name in names if name not in unplanned)
        advice = {
            stage.stage: advise(recipe, stage, limit=limit)
            for stage in stages
            if limit is not None and stage.total > limit
        }
    finally:
        gc.unfreeze()
    return Plan(stages, limit, advice, unplanned)


def _elsewhere(recipe: Recipe) -> dict[str, str]:
    """Return the stages whose memory cannot be planned, each with the reason."""
    found = {}
    if (unplanned := BACKENDS[recipe.sample.backend].unplanned) is not None:
        found["sample"] = unplanned
    if recipe.judge.reward_model is not None:
        found["judge"] = "which loads a reward model of its own"
    if recipe.improve is not None and not recipe.improve.trained_by.selects:
        found["improve"] = "which another library trains"
    return found


def stages_that_run_the_model(recipe: Recipe) -> list[str]:
    """Return the planned stages in order; `sft` is among them only if the recipe fine-tunes."""
    one_round = recipe.model_copy(update={"rounds": 1})  # all rounds take the same
    idle = {"pair", "report"} | ({"sft"} if recipe.sft is None else set())
    idle |= {"judge"} if recipe.judge.reward_model is None else set()
    return [stage.name for stage in stages_of(one_round) if stage.name not in idle]


def plan_stage(recipe: Recipe, stage: str) -> StagePlan:
    """Plan one stage by rehearsing it, with few of a deep model's layers."""
    from allo.plan.shallow import planned_by_layer

    return planned_by_layer(lambda recipe: rehearse_stage(recipe, stage), recipe)


def rehearse_stage(recipe: Recipe, stage: str) -> StagePlan:
    """Plan one stage by rehearsing it with the model as it is."""
    from allo.plan import inference, training

    match stage:
        case "sample":
            return inference.plan_sampling(recipe)
        case "score":
            scoring = inference.plan_scoring(recipe)
            if recipe.score is None or not recipe.score.sides:
                return scoring
            return max(scoring, training.plan_training(recipe, "score"), key=lambda stage: stage.total)
        case "evaluate":
            return inference.plan_evaluation(recipe)
        case _:
            return training.plan_training(recipe, stage)
