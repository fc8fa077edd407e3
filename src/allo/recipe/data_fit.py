"""The fit of a recipe's data, loss, scorers and trainer: pairs, labelled feedback, or samples."""

from typing import TYPE_CHECKING

from allo.recipe.kinds import SOLUTIONS
from allo.recipe.losses import ANSWER_LOSSES, FEEDBACK_LOSSES, PAIR_LOSSES
from allo.recipe.scores import SCORERS

if TYPE_CHECKING:
    from allo.recipe import Improve, Recipe


def check_data_fits(recipe: "Recipe") -> None:
    """Raise a `ValueError` for anything that cannot learn from the recipe's data, with what to use."""
    if recipe.improve is not None:
        _check_loss(recipe, recipe.improve)
    if recipe.data.feedback is None:
        return
    if recipe.forget and recipe.score:
        for scorer in recipe.score.entries:
            if scorer.of_prompt:
                others = ", ".join(one.name for one in SCORERS.values() if not one.of_prompt)
                raise ValueError(
                    f"scorer {scorer.name!r} compares a completion with another answer to its prompt, or with a solution, "
                    f"and data.feedback has neither: set score.scorer to one of {others}"
                )
    if recipe.evaluate.likelihood_pairs:
        raise ValueError(
            "evaluate.likelihood_pairs measures pairs, and data.feedback has none: set it to 0; data.held_out measures "
            "labelled completions"
        )
    if recipe.improve and recipe.improve.anchor:
        raise ValueError(
            "improve.anchor adds the likelihood of a pair's chosen answer, and data.feedback has no pairs: set it to 0"
        )


def _check_loss(recipe: "Recipe", improve: "Improve") -> None:
    loss, labelled = improve.loss, recipe.data.feedback is not None
    if labelled and not improve.trained_by.selects:
        needs = "samples by itself" if improve.trained_by.samples else "learns from pairs"
        raise ValueError(
            f"improve.trainer {improve.trainer!r} {needs}, and data.feedback has single labelled completions: set it to "
            f"selected, and improve.loss to {' or '.join(FEEDBACK_LOSSES)}"
        )
    if labelled and loss in {**PAIR_LOSSES, **ANSWER_LOSSES} and loss not in (*FEEDBACK_LOSSES, "rft"):
        raise ValueError(
            f"improve.loss {loss} learns from {'solutions' if loss in ANSWER_LOSSES else 'pairs'}, and data.feedback has single "
            f"labelled completions: set it to {' or '.join(FEEDBACK_LOSSES)}, or to rft for the good ones alone"
        )
    if not labelled and loss in FEEDBACK_LOSSES and loss not in PAIR_LOSSES:
        raise ValueError(
            f"improve.loss {loss} learns from labelled completions: give them as data.feedback, or set it to one of "
            f"{', '.join(PAIR_LOSSES)}, which learn from pairs"
        )
    if recipe.data.pairs is not None and SOLUTIONS in improve.sees:
        raise ValueError(f"improve.loss {loss} needs gold solutions, which ready pairs lack: set it to rft")
