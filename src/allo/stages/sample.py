"""The sampling of the starting model's completions, by the recipe's backend."""

from typing import Any

from allo.files.artifacts import RunFolder, write_jsonl
from allo.recipe import Recipe
from allo.recipe.backends import BACKENDS
from allo.recipe.own_code import function_of
from allo.sampling.completions import Completed
from allo.tasks.sources import training_prompts


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `01-completions.jsonl`."""
    prompts = training_prompts(recipe)
    complete = function_of(BACKENDS[recipe.sample.backend].complete, key="sample.backend")
    completed: Completed = complete(recipe, folder, prompts)
    write_jsonl(folder.completions, completed.completions)
    completed.lines.discard()
    return {
        "prompts": len(prompts),
        "prompts_cut": completed.num_cut,
        "completions": len(completed.completions),
        "finished": sum(completion.finished for completion in completed.completions),
        **completed.counts,
    }
