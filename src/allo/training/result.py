"""The results of a training stage: its mask, its delta from the starting model, and its metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo import delta
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, remove, write_jsonl
from allo.models.start import LOWER_RATE, Start, read_start
from allo.ranks import rank
from allo.recipe import Recipe
from allo.training.run import remove_checkpoints, state_bytes, train
from allo.training.selected_trainer import SelectedTrainer
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import as_bits
from allo.weights.finite import check_finite
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout, trained_parameters
from allo.weights.param_mask import ParamMask
from allo.weights.places import gather

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
    trained = (mask.indices, before)
    counts |= write_change(trainer.model, run, folder, among=trained, metadata=mask.metadata)
    remove_checkpoints(folder)
    return counts


def write_change(
    model: PreTrainedModel,
    run: RunFolder,
    folder: Path,
    *,
    among: Sequence[Mapping[str, Tensor]],
    metadata: Mapping[str, str],
) -> dict[str, int]:
    """Write the delta from the starting model to `model`, and the whole model, into a stage's folder.

    `among` has, by tensor, the flat indices at which they may differ. Returns the number that do, each tied weight once, and
    the delta's size. Raises `DivergedError`, naming the tensor, before it writes weights that are NaN or infinite.
    """
    check_finite(model.named_parameters(), where=folder.name, advice=LOWER_RATE, kind=DivergedError)
    start = read_start(run)
    changed = _write_delta(model, start, among, metadata, folder / DELTA)
    remove(folder / "model")
    delta.apply(start.model, folder / DELTA, folder / "model")
    return {"changed_weights": changed, "delta_bytes": (folder / DELTA).stat().st_size}


def _write_delta(
    model: PreTrainedModel,
    start: Start,
    among: Sequence[Mapping[str, Tensor]],
    metadata: Mapping[str, str],
    path: Path,
) -> int:
    base = Checkpoint.open(start.model)
    indices, values = {}, {}
    layout = Layout.of(model)
    for name, tensor in layout.stored(trained_parameters(model)):
        candidates = [found[name] for found in among if name in found]
        if not candidates:
            continue
        where = torch.cat(candidates).unique()
        # In the dtype on disk: the family may keep a weight in fp32 that is stored in bf16.
        live = gather(tensor.detach().cpu(), where).to(base.stored[name].dtype)
        differs = as_bits(live) != as_bits(gather(base.read(name), where))
        if differs.any():
            indices[name], values[name] = where[differs], live[differs]
    changed = sum(len(where) for where in indices.values())
    for name, first in layout.copies(base.stored.keys()).items():
        if first in indices:
            indices[name], values[name] = indices[first], values[first]
    delta.write_delta(
        path,
        indices=indices,
        values=values,
        shapes=base.shapes,
        base_hashes=start.hashes,
        metadata={
            **metadata,
            "base_model": Path(start.model).name,
            **delta.noted_dtypes(entry.dtype for entry in base.stored.values()),
        },
    )
    return changed
