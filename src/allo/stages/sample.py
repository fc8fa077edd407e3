"""The sampling of the starting model's completions, by the recipe's backend."""

from contextlib import nullcontext
from typing import Any

from allo.files.artifacts import RunFolder, write_jsonl
from allo.ranks import alone, rank
from allo.recipe import Recipe
from allo.recipe.backends import BACKENDS
from allo.recipe.own_code import function_of
from allo.sampling.completions import Completed
from allo.tasks.sources import training_prompts


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `01-completions.jsonl`."""
    prompts = training_prompts(recipe)
    backend = BACKENDS[recipe.sample.backend]
    complete = function_of(backend.complete, key="sample.backend")
    if rank() and not backend.dealt:
        return {}
    with nullcontext() if backend.dealt else alone():
        completed: Completed = complete(recipe, folder, prompts)
    if rank():
        return {}
    write_jsonl(folder.completions, completed.completions)
    completed.lines.discard()
    return {
        "prompts": len(prompts),
        "prompts_cut": completed.num_cut,
        "completions": len(completed.completions),
        "finished": sum(completion.finished for completion in completed.completions),
        **completed.counts,
    }
