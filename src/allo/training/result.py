"""The results of a training stage: its mask, its delta from the starting model, and its metrics."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from allo import delta
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, remove, write_jsonl
from allo.models.start import LOWER_RATE, load_policy, load_start, load_start_tokenizer, read_start
from allo.ranks import rank
from allo.recipe import Recipe
from allo.training.run import remove_checkpoints, state_bytes, train
from allo.training.selected_trainer import SelectedTrainer
from allo.weights.checkpoints import Checkpoint
from allo.weights.finite import check_finite
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout
from allo.weights.own_pieces import changes_from, own_mask
from allo.weights.param_mask import ParamMask
from allo.weights.shards import Ranks, named_rows

DELTA = "delta.safetensors"
MASK = "mask.safetensors"
MODEL = "model"


def located_mask(
    recipe: Recipe, run: RunFolder, model: PreTrainedModel, *, density: float, folder: Path | None = None
) -> ParamMask:
    """Return the mask of the top `density` of all weights; every weight if the recipe locates none.

    A rank of a sharded model gets the entries in its rows, from the mask that the first one writes into `folder`. Raises
    `UserError` if the importance was located on another model.
    """
    ranks, layout = Ranks.of(model), Layout.of(model)
    if ranks.num == 1 or folder is None:
        return _mask_at(recipe, run, layout, density=density)
    if ranks.is_first:
        _mask_at(recipe, run, layout, density=density).save(folder / MASK)
    ranks.wait()
    return own_mask(folder / MASK, model)


def _mask_at(recipe: Recipe, run: RunFolder, layout: Layout, *, density: float) -> ParamMask:
    if recipe.locate is None:
        return layout.full_mask()
    mask = ImportanceMap.load(run.importance).mask_at(density)
    if mask.metadata.get("base_fingerprint") != read_start(run).fingerprint:
        raise UserError(
            f"{run.importance}: it was located on a model other than {read_start(run).model}. "
            "Run `allo locate` on this recipe again."
        )
    return mask


def load_start_of_improving(
    recipe: Recipe, run: RunFolder
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Collection[str]]:
    """Load the model that improving starts from, which is its reference: the start, changed by forgetting if the recipe forgets.

    Returns it, its tokenizer, and the names of the tensors that have changed.
    """
    if recipe.forget is None:
        return (*load_start(recipe, run), ())
    if recipe.shards is not None:  # the delta has entries of all ranks' rows
        model = load_policy(recipe, run.forget / MODEL)
        return model, load_start_tokenizer(recipe, run), Layout.of(model).shapes.keys()
    model, tokenizer = load_start(recipe, run)
    change = delta.read_delta(run.forget / DELTA)
    delta.apply_to_model(model, change)
    return model, tokenizer, change.indices.keys()


def train_stage(
    trainer: SelectedTrainer, run: RunFolder, folder: Path, mask: ParamMask, *, before: Collection[str]
) -> dict[str, Any]:
    """Train, then write `mask`, `metrics.jsonl`, the delta and the whole model into the stage's folder.

    `before` names the tensors that an earlier stage changed. Returns the stage's counts.
    """
    rows = train(trainer)
    ranks = trainer.selected.ranks
    if rank() and ranks.num == 1:
        return {}
    if ranks.is_first:
        write_jsonl(folder / "metrics.jsonl", rows)
    if ranks.num == 1:  # otherwise `located_mask` has written it
        mask.save(folder / MASK)
    counts = {
        "rows": len(trainer.train_dataset),
        "dropped": trainer.num_dropped,
        "steps": trainer.state.global_step,
        "trained_weights": trainer.selected.num_trained,
        "density": trainer.selected.density,
        "training_state_bytes": state_bytes(trainer),
    }
    trainer.selected.release()
    trained = {*mask.indices, *before}
    counts |= write_change(trainer.model, run, folder, among=trained, metadata=mask.metadata)
    if ranks.is_first:
        remove_checkpoints(folder)
    return counts


def write_change(
    model: PreTrainedModel,
    run: RunFolder,
    folder: Path,
    *,
    among: Collection[str],
    metadata: Mapping[str, str],
) -> dict[str, int]:
    """Write the delta from the starting model to `model`, and the whole model, into a stage's folder.

    `among`: the tensors on disk that may differ. Returns the number of weights that do, each tied one once, and the delta's
    size. Raises `DivergedError`, naming the tensor, before it writes weights that are NaN or infinite.
    """
    check_finite(named_rows(model), where=folder.name, advice=LOWER_RATE, kind=DivergedError)
    start = read_start(run)
    base = Checkpoint.open(start.model)
    change, ranks = changes_from(base, model, among=among), Ranks.of(model)
    if ranks.is_first:
        delta.write_delta(
            folder / DELTA,
            indices=change.indices,
            values=change.values,
            shapes=base.shapes,
            base_hashes=start.hashes,
            metadata={
                **metadata,
                "base_model": Path(start.model).name,
                **delta.noted_dtypes(entry.dtype for entry in base.stored.values()),
            },
        )
        remove(folder / MODEL)
        delta.apply(start.model, folder / DELTA, folder / MODEL)
    ranks.wait()
    return {"changed_weights": change.num, "delta_bytes": (folder / DELTA).stat().st_size}
