"""The preview of a recipe: its checks and the tokens to train on. Nothing is run or written."""

from allo.files.artifacts import RunFolder
from allo.files.manifest import stages_done
from allo.files.rounds import first_round, round_name
from allo.pipeline import progress
from allo.pipeline.estimate import shares_said
from allo.plan.duration import tokens_of
from allo.plan.preview_page import Preview
from allo.plan.preview_sample import sampled_pair
from allo.recipe import Recipe
from allo.stages.check import findings
from allo.tasks.sources import Sources, sources_read


def preview(recipe: Recipe, sources: Sources | None = None) -> Preview:
    """Make the checks of a recipe. Raises `UserError` for the first failed check."""
    sources, stages = sources or sources_read(recipe), progress(recipe)
    found = findings(recipe, sources)
    done = {name.removeprefix(f"{round_name(1)}/") for name, is_done in stages.items() if is_done}
    pair = None
    if "pair" in done and not recipe.data.is_ready:
        pair = sampled_pair(recipe, found.tokenizer, is_scored="score" in done)
    counts = (
        stages_done(first_round(RunFolder(recipe.run_folder)))["score"]["counts"] if "score" in done else None
    )
    return Preview(
        recipe,
        found,
        stages,
        pair,
        marked=counts and (counts["weighted"], counts["tokens"]),
        shares=shares_said(recipe, tokens_of(recipe, sources)),
    )
