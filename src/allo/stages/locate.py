"""Find the weights that matter: score every weight, keep the top share (method.md 1.1)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from allo.artifacts import RunFolder, read_jsonl, write_jsonl, written_aside
from allo.console import track
from allo.core import importance
from allo.core.importance_map import ImportanceMap
from allo.core.param_mask import ParamMask
from allo.core.selection import stable_hash
from allo.hf.arguments import training_arguments
from allo.hf.models import Model
from allo.hf.start import load_start, read_start
from allo.hf.trainer import ImproveTrainer
from allo.hf.training import remove_checkpoints, state_bytes, train
from allo.recipe import Locate, Recipe
from allo.records import Pair

WARMUP_WEIGHTS = "weights.safetensors"
Scores = Callable[[], Iterable[tuple[str, Tensor]]]


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write `04-importance.safetensors`, and `04-warmup` where a warm-up was trained."""
    assert recipe.locate is not None
    criterion = recipe.locate.criterion
    run.warmup.mkdir(exist_ok=True)
    model, tokenizer = load_start(recipe, run)
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    counts: dict[str, Any] = {}
    if criterion in ("magnitude", "random"):
        scores = _without_data(model, criterion, seed=recipe.seed)
    else:
        trainer = _dpo_trainer(recipe, recipe.locate, run, model, tokenizer, shapes)
        counts = {"pairs": len(trainer.train_dataset), "dropped": trainer.num_dropped}
        if criterion in ("warmup", "bottom"):
            write_jsonl(run.warmup / "metrics.jsonl", train(trainer))
            counts["training_state_bytes"] = state_bytes(trainer)
            _keep_warmup(recipe, run, trainer, shapes)
            scores = _changes(trainer, shapes, criterion)
        else:
            scores = _gradients(trainer, shapes, criterion)
    top = ImportanceMap.top(
        scores,
        density=recipe.max_density,
        granularity=recipe.locate.granularity,
        shapes=shapes,
        metadata={"criterion": criterion, "base_fingerprint": read_start(run).fingerprint},
    )
    top.save(run.importance)
    remove_checkpoints(run.warmup)
    return counts | {"weights": sum(len(indices) for indices in top.indices.values())}


def _dpo_trainer(
    recipe: Recipe,
    locate: Locate,
    run: RunFolder,
    model: Model,
    tokenizer: Any,
    shapes: dict[str, tuple[int, ...]],
) -> ImproveTrainer:
    """Plain DPO of all weights, with fp32 masters: bf16 weights would swallow the small updates."""
    arguments = training_arguments(
        locate.training.model_dump(),
        folder=run.warmup,
        seed=recipe.seed,
        device=model.device,
        key="locate.training",
    )
    return ImproveTrainer(
        model,
        arguments,
        [vars(pair) for pair in read_jsonl(run.pairs, Pair)],
        tokenizer,
        mask=ParamMask.full(shapes),
        beta=locate.beta,
        keep=1.0,
        max_length=recipe.max_length,
    )


def _keep_warmup(
    recipe: Recipe, run: RunFolder, trainer: ImproveTrainer, shapes: dict[str, tuple[int, ...]]
) -> None:
    """The warm-up model in fp32, where the `implicit` scorer will read it."""
    if not recipe.reads_warmup:
        return
    masters = trainer.selected.masters()
    with written_aside(run.warmup / WARMUP_WEIGHTS) as part:
        save_file({name: masters[name].reshape(shapes[name]).contiguous() for name in masters}, part)


def _changes(trainer: ImproveTrainer, shapes: dict[str, tuple[int, ...]], criterion: str) -> Scores:
    score = importance.bottom if criterion == "bottom" else importance.delta
    masters, before = trainer.selected.masters(), trainer.selected.slot("ref")
    return lambda: ((name, score(before[name], masters[name])) for name in shapes)


def _gradients(trainer: ImproveTrainer, shapes: dict[str, tuple[int, ...]], criterion: str) -> Scores:
    """One pass over the pairs at the starting point: sum g, or for `fisher` sum g^2 over single pairs."""
    # The square of a batch's summed gradient is no sum of squares: it would depend on the batch size.
    size = 1 if criterion == "fisher" else trainer.args.per_device_train_batch_size
    loader = DataLoader(trainer.train_dataset, batch_size=size, collate_fn=trainer.data_collator)
    squares: dict[str, Tensor] = {}
    for batch in track(loader, "locate", total=len(loader)):
        inputs = {name: tensor.to(trainer.model.device) for name, tensor in batch.items()}
        trainer.loss(inputs, denominator=1.0).backward()
        if criterion == "fisher":
            for name, gradient in trainer.selected.gradients().items():
                squares[name] = gradient.square() + squares.get(name, 0.0)
                gradient.zero_()
    gradients = squares if criterion == "fisher" else trainer.selected.gradients()
    score = {"gradient": importance.gradient, "fisher": importance.fisher, "taylor": importance.taylor}[
        criterion
    ]
    theta = trainer.selected.masters()
    return lambda: ((name, score(theta[name], gradients[name])) for name in shapes)


def _without_data(model: Model, criterion: str, *, seed: int) -> Scores:
    def score(name: str, param: Tensor) -> Tensor:
        flat = param.detach().reshape(-1).cpu()
        if criterion == "magnitude":
            return importance.magnitude(flat, flat)
        return importance.random(flat, stable_hash(name, torch.arange(flat.numel()), seed=seed))

    return lambda: ((name, score(name, param)) for name, param in model.named_parameters())
