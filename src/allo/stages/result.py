"""The check of a run's result, once: transformers must find its weights under the names on disk."""

from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.result_link import link
from allo.files.rounds import trained
from allo.models.start import is_ready, load_policy_tokenizer
from allo.recipe import Recipe


def point_to_result(recipe: Recipe, run: RunFolder) -> None:
    """Link the run's `model` to the last training stage's model.

    Raises `UserError` if transformers would not load its tensors under the names on disk, or not its tokenizer.
    """
    folder = trained(recipe, run) / "model"
    load_policy_tokenizer(recipe, folder)
    if is_ready(recipe.model_copy(update={"model": str(folder)})) is None:
        raise UserError(
            f"{folder}: transformers would load its weights under other names or in other types than the files have. "
            "Report this with the model's name; `allo delta apply` makes the folder again from the base."
        )
    link(run, folder)
