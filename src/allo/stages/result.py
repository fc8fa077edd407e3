"""The check of a run's result, once: transformers must find its weights under the names on disk."""

from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.result_link import link
from allo.files.rounds import trained
from allo.models.load import parameter_names
from allo.models.start import load_policy_tokenizer
from allo.recipe import Recipe
from allo.weights.checkpoints import Checkpoint


def point_to_result(recipe: Recipe, run: RunFolder) -> None:
    """Link the run's `model` to the last training stage's model.

    Raises `UserError` if transformers would not load its tensors under the names on disk, or not its tokenizer.
    """
    folder = trained(recipe, run) / "model"
    live = parameter_names(folder, trust_remote_code=recipe.trust_remote_code)
    load_policy_tokenizer(recipe, folder)
    if other := live ^ Checkpoint.open(folder).stored.keys():
        raise UserError(
            f"{folder}: transformers knows its weights by other names than the files have (first: {min(other)}). "
            "Report this with the model's name; `allo delta apply` makes the folder again from the base."
        )
    link(run, folder)
