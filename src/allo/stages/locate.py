"""Find the weights that matter: score every weight, keep the top share (method.md 1.1)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from allo.console import say
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl, written_aside
from allo.files.records import Feedback, Pair
from allo.models.load import Tokenizer
from allo.models.rows import counted_completions, counted_pairs
from allo.models.start import load_start, read_start
from allo.recipe import Locate, Recipe
from allo.recipe.criteria import Needs, criterion_of
from allo.training.arguments import stage_arguments
from allo.training.dpo_passes import DpoPasses
from allo.training.locating import Statistics, changes_of, warmup_trainer
from allo.training.run import remove_checkpoints, state_bytes, train
from allo.weights import importance
from allo.weights.allowed import allowed_by
from allo.weights.host_sums import HostSums
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout, trained_parameters
from allo.weights.selection import PIECE

WARMUP_WEIGHTS = "weights.safetensors"
Located = tuple[Statistics, dict[str, Any]]
"""Statistics of all allowed weights, and the stage's counts."""


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `04-importance.safetensors`, and `04-warmup` if a warm-up was trained."""
    assert recipe.locate is not None
    folder.warmup.mkdir(exist_ok=True)
    model, tokenizer = load_start(recipe, folder)
    allowed = allowed_by(recipe.locate, model, density=recipe.max_density)
    layout = Layout.of(model).among(allowed.names)
    criterion = criterion_of(recipe.locate.criterion)
    score, needs = importance.scoring_of(criterion), criterion.needs
    if needs == "warm-up":
        statistics, counts = _trained(recipe, recipe.locate, folder, layout, tokenizer)
    elif needs == "fused warm-up":
        statistics, counts = _trained_fused(recipe, recipe.locate, folder, layout, tokenizer)
    elif criterion.sums:
        statistics, counts = _summed(recipe, recipe.locate, folder, layout, tokenizer)
    else:
        statistics, counts = _without_data(recipe, needs, layout), {}
    top = ImportanceMap.top(
        lambda: ((name, score(theta, statistic)) for name, theta, statistic in statistics()),
        density=recipe.max_density,
        granularity=recipe.locate.granularity,
        shapes=allowed.shapes,
        metadata={"criterion": recipe.locate.criterion, "base_fingerprint": read_start(folder).fingerprint}
        | allowed.metadata,
    )
    top.save(folder.importance)
    remove_checkpoints(folder.warmup)
    return counts | {"weights": sum(len(indices) for indices in top.indices.values())}


def _trained(
    recipe: Recipe, locate: Locate, folder: RunFolder, layout: Layout, tokenizer: Tokenizer
) -> Located:
    """Train all allowed weights by plain DPO, or its form for labelled completions."""
    trainer = warmup_trainer(
        layout.model,
        stage_arguments(recipe, "locate", folder=folder.warmup, device=layout.model.device),
        _rows(folder),
        tokenizer,
        among=layout.shapes,
        beta=locate.beta,
        max_length=recipe.max_length,
        max_tokens_per_batch=locate.max_tokens_per_batch,
        records=True,
        labelled=folder.feedback.exists(),
    )
    write_jsonl(folder.warmup / "metrics.jsonl", train(trainer))
    if recipe.reads_warmup:
        shapes, masters = layout.live_shapes, trainer.selected.masters()
        _keep_warmup(folder, {name: masters[name].reshape(shapes[name]) for name in masters})
    counts = {
        _kind(folder): len(trainer.train_dataset),
        "dropped": trainer.num_dropped,
        "training_state_bytes": state_bytes(trainer),
    }
    return changes_of(trainer, layout), counts


def _trained_fused(
    recipe: Recipe, locate: Locate, folder: RunFolder, layout: Layout, tokenizer: Tokenizer
) -> Located:
    """Train all allowed weights as `_trained` does, each inside the backward pass, with fp32 changes in host memory."""
    passes, dropped = _passes(recipe, locate, folder, layout, tokenizer)
    warmup, metrics = passes.train_fused()
    write_jsonl(folder.warmup / "metrics.jsonl", metrics)
    if recipe.reads_warmup:
        _keep_warmup(folder, {name: warmup.weights(name) for name in warmup.deltas})
    counts = {
        _kind(folder): len(passes.rows),
        "dropped": dropped,
        "training_state_bytes": warmup.host_bytes + warmup.device_bytes,
        "host_state_bytes": warmup.host_bytes,
    }
    return lambda: _in_pieces(layout.beside(warmup.start, warmup.deltas)), counts


def _summed(
    recipe: Recipe, locate: Locate, folder: RunFolder, layout: Layout, tokenizer: Tokenizer
) -> Located:
    """Sum g, or g^2 of single pairs or labelled completions, over all of them at the starting model."""
    passes, dropped = _passes(recipe, locate, folder, layout, tokenizer)
    sums = HostSums(layout.live_shapes, dtype=getattr(torch, locate.accumulate), seed=recipe.seed_of_data)
    # The square of a batch's summed gradient is no sum of squares: it would depend on the batch size.
    of_pairs = criterion_of(locate.criterion).needs == "squared gradients"
    add = sums.add_squares if of_pairs else sums.add
    passes.take_start_gradients(lambda name, _, gradient: add(name, gradient), of_pairs=of_pairs)
    counts = {_kind(folder): len(passes.rows), "dropped": dropped, "host_state_bytes": sums.num_bytes}
    return lambda: _in_pieces(layout.beside(trained_parameters(layout.model), sums)), counts


def _without_data(recipe: Recipe, needs: Needs, layout: Layout) -> Statistics:
    def statistics() -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, tensor in layout.stored(trained_parameters(layout.model)):
            flat = tensor.detach().reshape(-1).cpu()
            indices, seed = torch.arange(flat.numel()), recipe.seed_of_data
            yield name, flat, importance.statistic_of(needs, name, flat, indices, seed=seed)

    return statistics


def _passes(
    recipe: Recipe, locate: Locate, folder: RunFolder, layout: Layout, tokenizer: Tokenizer
) -> tuple[DpoPasses, int]:
    """Return passes over the pairs or labelled completions, and how many did not fit."""
    counted = counted_completions if folder.feedback.exists() else counted_pairs
    rows, counts = counted(tokenizer, _rows(folder), max_length=recipe.max_length)
    if words := counts.words(recipe.max_length):
        say(words)
    passes = DpoPasses(
        layout.model,
        rows,
        stage_arguments(recipe, "locate", folder=folder.warmup, device=layout.model.device),
        beta=locate.beta,
        pad_id=tokenizer.pad_token_id,
        max_tokens_per_batch=locate.max_tokens_per_batch,
        among=layout.live_shapes,
    )
    return passes, counts.dropped


def _rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the run's labelled completions or, if it has none, its pairs."""
    if folder.feedback.exists():
        return [vars(row) for row in read_jsonl(folder.feedback, Feedback)]
    return [vars(pair) for pair in read_jsonl(folder.pairs, Pair)]


def _kind(folder: RunFolder) -> str:
    return "completions" if folder.feedback.exists() else "pairs"


def _keep_warmup(folder: RunFolder, weights: Mapping[str, Tensor]) -> None:
    """Write the warm-up model in fp32 [shape] to the file that the `implicit` scorer reads."""
    with written_aside(folder.warmup / WARMUP_WEIGHTS) as part:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part)


def _in_pieces(tensors: Iterable[tuple[str, Tensor, Tensor]]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield weights and statistics in pieces, so that no score of a whole tensor is made."""
    for name, *both in tensors:
        pieces = zip(*(tensor.detach().split(PIECE) for tensor in both), strict=True)
        yield from ((name, piece.cpu(), statistic) for piece, statistic in pieces)
