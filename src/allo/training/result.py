"""The results of a training stage: its mask, its delta from the starting model, and its metrics."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from allo import delta
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, remove, write_jsonl
from allo.models.start import LOWER_RATE, read_start
from allo.ranks import rank
from allo.recipe import Recipe
from allo.training.run import remove_checkpoints, state_bytes, train
from allo.training.selected_trainer import SelectedTrainer
from allo.weights.checkpoints import Checkpoint
from allo.weights.finite import check_finite
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout
from allo.weights.own_pieces import changes_from
from allo.weights.param_mask import ParamMask
from allo.weights.shards import Ranks, named_rows

DELTA = "delta.safetensors"
MASK = "mask.safetensors"


def located_mask(recipe: Recipe, run: RunFolder, model: PreTrainedModel, *, density: float) -> ParamMask:
    """Return the mask of the top `density` of all weights; every weight if the recipe locates none.

    Raises `UserError` if the importance was located on another model.
    """
    if recipe.locate is None:
        return Layout.of(model).full_mask()
    mask = ImportanceMap.load(run.importance).mask_at(density)
    if mask.metadata.get("base_fingerprint") != read_start(run).fingerprint:
        raise UserError(
            f"{run.importance}: it was located on a model other than {read_start(run).model}. "
            "Run `allo locate` on this recipe again."
        )
    return mask


def apply_previous_stage(recipe: Recipe, run: RunFolder, model: PreTrainedModel) -> Mapping[str, Tensor]:
    """Apply the changes of forgetting, if the recipe forgets, to the starting model, in place.

    Returns their flat indices by tensor. Improving starts from this model and uses it as its reference.
    """
    if recipe.forget is None:
        return {}
    change = delta.read_delta(run.forget / DELTA)
    delta.apply_to_model(model, change)
    return change.indices


def train_stage(
    trainer: SelectedTrainer, run: RunFolder, folder: Path, mask: ParamMask, *, before: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Train, then write `mask`, `metrics.jsonl`, the delta and the whole model into the stage's folder.

    `before` has the indices that an earlier stage changed. Returns the stage's counts.
    """
    rows = train(trainer)
    if rank():
        return {}
    write_jsonl(folder / "metrics.jsonl", rows)
    mask.save(folder / MASK)
    counts = {
        "rows": len(trainer.train_dataset),
        "dropped": trainer.num_dropped,
        "steps": trainer.state.global_step,
        "trained_weights": mask.num_selected,
        "density": mask.density,
        "training_state_bytes": state_bytes(trainer),
    }
    trainer.selected.release()
    trained = mask.indices.keys() | before.keys()
    counts |= write_change(trainer.model, run, folder, among=trained, metadata=mask.metadata)
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
            metadata={**metadata, "base_model": Path(start.model).name},
        )
        remove(folder / "model")
        delta.apply(start.model, folder / DELTA, folder / "model")
    ranks.wait()
    return {"changed_weights": change.num, "delta_bytes": (folder / DELTA).stat().st_size}
