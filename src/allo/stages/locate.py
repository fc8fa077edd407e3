"""Find the weights that matter: score every weight, keep the top share (method.md 1.1)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from allo.console import say
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl, written_aside
from allo.files.records import Pair
from allo.models.load import Model, Tokenizer
from allo.models.rows import counted_pairs
from allo.models.start import load_start, read_start
from allo.recipe import Locate, Recipe
from allo.training.arguments import training_arguments
from allo.training.dpo_passes import DpoPasses
from allo.training.run import remove_checkpoints, state_bytes, train
from allo.training.trainer import ImproveTrainer
from allo.weights import importance
from allo.weights.host_sums import HostSums
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from allo.weights.selection import PIECE, stable_hash

WARMUP_WEIGHTS = "weights.safetensors"
Shapes = dict[str, tuple[int, ...]]
Scores = Callable[[], Iterable[tuple[str, Tensor]]]
Counts = dict[str, Any]


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `04-importance.safetensors`, and `04-warmup` where a warm-up was trained."""
    assert recipe.locate is not None
    folder.warmup.mkdir(exist_ok=True)
    model, tokenizer = load_start(recipe, folder)
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    match recipe.locate.criterion:
        case "magnitude" | "last" | "random":
            scores, counts = _without_data(recipe, recipe.locate, model)
        case "warmup" | "bottom":
            scores, counts = _trained(recipe, recipe.locate, folder, model, tokenizer, shapes)
        case "warmup_fused":
            scores, counts = _trained_fused(recipe, recipe.locate, folder, model, tokenizer)
        case _:
            scores, counts = _summed(recipe, recipe.locate, folder, model, tokenizer, shapes)
    top = ImportanceMap.top(
        scores,
        density=recipe.max_density,
        granularity=recipe.locate.granularity,
        shapes=shapes,
        metadata={"criterion": recipe.locate.criterion, "base_fingerprint": read_start(folder).fingerprint},
    )
    top.save(folder.importance)
    remove_checkpoints(folder.warmup)
    return counts | {"weights": sum(len(indices) for indices in top.indices.values())}


def _trained(
    recipe: Recipe,
    locate: Locate,
    folder: RunFolder,
    model: Model,
    tokenizer: Tokenizer,
    shapes: Shapes,
) -> tuple[Scores, Counts]:
    """Plain DPO of all weights, with fp32 masters: bf16 weights would swallow the small updates."""
    trainer = ImproveTrainer(
        model,
        _arguments(recipe, locate, folder, model),
        [vars(pair) for pair in read_jsonl(folder.pairs, Pair)],
        tokenizer,
        mask=ParamMask.full(shapes),
        records=True,
        beta=locate.beta,
        keep=1.0,
        max_tokens_per_batch=locate.max_tokens_per_batch,
        max_length=recipe.max_length,
    )
    write_jsonl(folder.warmup / "metrics.jsonl", train(trainer))
    masters, before = trainer.selected.masters(), trainer.selected.slot("ref")
    if recipe.reads_warmup:
        _keep_warmup(folder, {name: masters[name].reshape(shapes[name]) for name in masters})
    score = importance.bottom if locate.criterion == "bottom" else importance.delta
    counts = {
        "pairs": len(trainer.train_dataset),
        "dropped": trainer.num_dropped,
        "training_state_bytes": state_bytes(trainer),
    }
    return lambda: ((name, score(before[name], masters[name])) for name in shapes), counts


def _trained_fused(
    recipe: Recipe, locate: Locate, folder: RunFolder, model: Model, tokenizer: Tokenizer
) -> tuple[Scores, Counts]:
    """Plain DPO of all weights, each updated inside the backward pass, with fp32 deltas in host memory."""
    passes, dropped = _passes(recipe, locate, folder, model, tokenizer)
    warmup, metrics = passes.train_fused()
    write_jsonl(folder.warmup / "metrics.jsonl", metrics)
    if recipe.reads_warmup:
        _keep_warmup(folder, {name: warmup.weights(name) for name in warmup.deltas})
    counts = {
        "pairs": len(passes.rows),
        "dropped": dropped,
        "training_state_bytes": warmup.host_bytes + warmup.device_bytes,
        "host_state_bytes": warmup.host_bytes,
    }

    def scores() -> Iterator[tuple[str, Tensor]]:
        for name, delta in warmup.deltas.items():
            yield from ((name, piece.abs()) for piece in _pieces(delta))

    return scores, counts


def _summed(
    recipe: Recipe, locate: Locate, folder: RunFolder, model: Model, tokenizer: Tokenizer, shapes: Shapes
) -> tuple[Scores, Counts]:
    """One pass over the pairs at the starting point: sum g, or for `fisher` sum g^2 over single pairs."""
    passes, dropped = _passes(recipe, locate, folder, model, tokenizer)
    sums = HostSums(shapes, dtype=getattr(torch, locate.accumulate), seed=recipe.seed_of_data)
    if locate.criterion == "fisher":
        # The square of a batch's summed gradient is no sum of squares: it would depend on the batch size.
        passes.take_start_gradients_of_pairs(lambda name, _, gradient: sums.add_squares(name, gradient))
    else:
        passes.take_start_gradients(lambda name, _, gradient: sums.add(name, gradient))
    score = getattr(importance, locate.criterion)

    def scores() -> Iterator[tuple[str, Tensor]]:
        for name, param in model.named_parameters():
            pieces = zip(_pieces(param), _pieces(sums[name]), strict=True)
            yield from ((name, score(theta.cpu(), total)) for theta, total in pieces)

    return scores, {"pairs": len(passes.rows), "dropped": dropped, "host_state_bytes": sums.num_bytes}


def _without_data(recipe: Recipe, locate: Locate, model: Model) -> tuple[Scores, Counts]:
    def score(name: str, param: Tensor) -> Tensor:
        flat = param.detach().reshape(-1).cpu()
        if locate.criterion == "magnitude":
            return importance.magnitude(flat, flat)
        if locate.criterion == "last":
            return importance.last(flat, torch.tensor(importance.layer_of(name)).expand(flat.shape))
        return importance.random(
            flat, stable_hash(name, torch.arange(flat.numel()), seed=recipe.seed_of_data)
        )

    return lambda: ((name, score(name, param)) for name, param in model.named_parameters()), {}


def _arguments(recipe: Recipe, locate: Locate, folder: RunFolder, model: Model) -> Any:
    return training_arguments(
        locate.training.model_dump(),
        folder=folder.warmup,
        seed=recipe.seed_of_data,
        device=model.device,
        key="locate.training",
    )


def _passes(
    recipe: Recipe, locate: Locate, folder: RunFolder, model: Model, tokenizer: Tokenizer
) -> tuple[DpoPasses, int]:
    """Passes over the pairs, and how many pairs did not fit."""
    pairs = [vars(pair) for pair in read_jsonl(folder.pairs, Pair)]
    rows, counts = counted_pairs(tokenizer, pairs, max_length=recipe.max_length)
    if words := counts.words(recipe.max_length):
        say(words)
    passes = DpoPasses(
        model,
        rows,
        _arguments(recipe, locate, folder, model),
        beta=locate.beta,
        pad_id=tokenizer.pad_token_id,
        max_tokens_per_batch=locate.max_tokens_per_batch,
    )
    return passes, counts.dropped


def _keep_warmup(folder: RunFolder, weights: Mapping[str, Tensor]) -> None:
    """The warm-up model in fp32 [shape], where the `implicit` scorer will read it."""
    with written_aside(folder.warmup / WARMUP_WEIGHTS) as part:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """A tensor's entries in pieces, so that no score of the whole is made."""
    return tensor.detach().reshape(-1).split(PIECE)
