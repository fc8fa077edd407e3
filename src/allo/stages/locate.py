"""Find the weights that matter: score every weight, keep the top share (method.md 1.1)."""

from collections.abc import Mapping
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from allo.console import say
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl, written_aside
from allo.files.records import Feedback, Pair
from allo.models.load import Tokenizer
from allo.models.rows import counted_completions, counted_pairs
from allo.models.start import load_start, read_start
from allo.ranks import by_first, rank
from allo.recipe import Recipe
from allo.recipe.criteria import criterion_of
from allo.training.arguments import stage_arguments
from allo.training.locating import Search
from allo.training.run import remove_checkpoints
from allo.weights import importance
from allo.weights.allowed import allowed_by
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout
from allo.weights.shards import Ranks

WARMUP_WEIGHTS = "weights.safetensors"


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `04-importance.safetensors`, and `04-warmup` if a warm-up was trained.

    Ranks share the warm-up's training. All else is rank 0's: gradients summed in another order would select others.
    """
    assert recipe.locate is not None
    is_shared = criterion_of(recipe.locate.criterion).needs == "warm-up" or recipe.shards is not None
    return _located(recipe, folder) if is_shared else by_first(lambda: _located(recipe, folder))


def _located(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    assert recipe.locate is not None
    folder.warmup.mkdir(exist_ok=True)
    model, tokenizer = load_start(recipe, folder)
    allowed = allowed_by(recipe.locate, model, density=recipe.max_density)
    criterion = criterion_of(recipe.locate.criterion)
    score = importance.scoring_of(criterion)
    rows, dropped = _rows(recipe, folder, tokenizer) if criterion.sees_pairs else ([], {})
    arguments = stage_arguments(recipe, "locate", folder=folder.warmup, device=model.device)
    layout = Layout.of(model).among(allowed.names)
    search = Search(layout, rows, arguments, tokenizer, recipe.locate, recipe.seed_of_data, resumes=True)
    found, ranks = search.statistics_of(criterion), Ranks.of(model)
    if rank() and ranks.num == 1:
        return {}
    if found.warmed is not None and ranks.is_first:
        write_jsonl(folder.warmup / "metrics.jsonl", found.metrics)
        if recipe.reads_warmup:
            _keep_warmup(folder, found.warmed())
    top = ImportanceMap.top(
        lambda: (
            (name, where, score(theta, statistic).reshape(-1))
            for name, where, theta, statistic in found.statistics()
        ),
        density=recipe.max_density,
        granularity=recipe.locate.granularity,
        shapes=allowed.shapes,
        metadata={"criterion": recipe.locate.criterion, "base_fingerprint": read_start(folder).fingerprint}
        | allowed.metadata,
        ranks=ranks,
    )
    if ranks.is_first:
        top.save(folder.importance)
        remove_checkpoints(folder.warmup)
    ranks.wait()
    return {**found.counts, **dropped, "weights": sum(len(indices) for indices in top.indices.values())}


def _rows(
    recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the token ids of the run's pairs or labelled completions, and how many did not fit."""
    if folder.feedback.exists():
        labelled = map(vars, read_jsonl(folder.feedback, Feedback))
        rows, counts = counted_completions(tokenizer, labelled, max_length=recipe.max_length)
    else:
        pairs = map(vars, read_jsonl(folder.pairs, Pair))
        rows, counts = counted_pairs(tokenizer, pairs, max_length=recipe.max_length)
    if words := counts.words(recipe.max_length):
        say(f"locate: {words}")
    return rows, {"dropped": counts.dropped}


def _keep_warmup(folder: RunFolder, weights: Mapping[str, Tensor]) -> None:
    """Write the warm-up model in fp32 [shape] to the file that the `implicit` scorer reads."""
    with written_aside(folder.warmup / WARMUP_WEIGHTS) as part:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part)
