"""Patterns are of names on disk: experts that lie in one tensor in memory are included and excluded one by one."""

from pathlib import Path

import pytest
import torch
from test_own_folder import DENSITY, TRAINING, begun, changed, improved, recipe

import converted
from allo import delta
from allo.errors import UserError
from allo.models.start import allowed_in_start
from allo.plan import plan_stage
from allo.stages import locate
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.experts import expert_rows
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from allo.weights.selection import num_to_select, select


def of_experts(folder: Path, layer: int) -> set[str]:
    shapes = Checkpoint.open(folder).shapes
    return {
        name
        for name, shape in shapes.items()
        if f"layers.{layer}." in name and (".experts." in name or len(shape) == 3)
    }


@pytest.mark.parametrize("criterion", ["warmup", "warmup_fused", "gradient", "random"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "granitemoe", "deepseek_v3"])
def test_experts_alone_are_selected_in_every_form_on_disk(
    tmp_path: Path, family: str, criterion: str
) -> None:
    own = converted.saved(family, tmp_path / "model")
    locate_block = {
        "criterion": criterion,
        "training": TRAINING,
        "include": ["experts"],
        "exclude": ["*layers.0.*"],
    }
    settings = recipe(own, criterion=criterion, locate=locate_block)
    run = begun(settings, tmp_path / "run")
    locate.run(settings, run)
    mask = ImportanceMap.load(run.importance).mask_at(DENSITY)
    assert mask.num_selected == num_to_select(DENSITY, mask.num_weights)
    assert mask.indices.keys() <= of_experts(own, 1)
    rows = expert_rows(mask.shapes, mask.indices)
    assert sum(row.selected for row in rows) == mask.num_selected
    assert all(row.selected == 0 for row in rows if row.layer == "0")


@pytest.mark.parametrize("criterion", ["warmup", "warmup_fused", "gradient"])
def test_an_expert_of_a_whole_tensor_is_left_out_alone(tmp_path: Path, criterion: str) -> None:
    """In memory it lies beside the others, whose scores are as without the pattern after one update."""
    own = converted.saved("mixtral", tmp_path / "model")
    one = TRAINING | {"max_steps": 1, "max_grad_norm": 1e9, "per_device_train_batch_size": 16}
    if criterion == "warmup_fused":
        del one["max_grad_norm"]
    found = {}
    for exclude in ([], ["*.experts.0.*", "*embed*"]):
        block = {"criterion": criterion, "training": one, "exclude": exclude}
        settings = recipe(
            own, criterion=criterion, locate=block, improve={"density": 0.2 if exclude else 1.0}
        )
        run = begun(settings, tmp_path / f"run-{len(exclude)}")
        locate.run(settings, run)
        found[bool(exclude)] = ImportanceMap.load(run.importance)
    every, few = found[False], found[True]
    scores = {
        name: s for name, s in every.scores.items() if ".experts.0." not in name and "embed" not in name
    }
    assert len(scores) < len(every.scores)
    wanted = select(lambda: scores.items(), k=num_to_select(0.2, sum(map(len, every.scores.values()))))
    assert few.indices.keys() == wanted.keys()
    assert all(torch.equal(few.indices[name], wanted[name]) for name in wanted)


def test_a_run_of_some_experts_is_a_delta_for_the_users_folder(tmp_path: Path) -> None:
    own = converted.saved("mixtral", tmp_path / "model")
    block = {"criterion": "warmup", "training": TRAINING, "include": ["*.experts.2.*"]}
    run = improved(recipe(own, criterion="warmup", locate=block), tmp_path / "run")
    delta.apply(own, run.improve / "delta.safetensors", tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(run.improve / "model")
    assert all(".experts.2." in name for name in changed(own, run.improve / "model"))
    mask = ParamMask.load(run.improve / "mask.safetensors")
    assert {row.kind for row in expert_rows(mask.shapes, mask.indices) if row.selected} == {"expert 2"}


def test_a_wrappers_tower_may_be_excluded_and_not_included(tmp_path: Path) -> None:
    own = converted.saved("gemma3", tmp_path / "model")
    settings = recipe(own, locate={"criterion": "magnitude", "exclude": ["vision"]})
    allowed = allowed_in_start(settings)
    assert allowed is not None and allowed.num_allowed == allowed.num_weights
    with pytest.raises(UserError, match=r"locate\.include: 0 of the model's"):
        allowed_in_start(recipe(own, locate={"criterion": "magnitude", "include": ["vision"]}))


def test_a_plan_knows_the_names_on_disk(tmp_path: Path) -> None:
    own = converted.saved("mixtral", tmp_path / "model")
    host = {}
    for include in ([], ["*.block_sparse_moe.experts.*.w2.weight"]):
        block = {"criterion": "gradient", "training": TRAINING, "include": include}
        host[bool(include)] = plan_stage(
            recipe(own, dtype="bfloat16", criterion="gradient", locate=block), "locate"
        ).host
    shapes = Checkpoint.open(own).shapes
    assert host[True] == 4 * sum(a * b for name, (a, b) in ((n, s) for n, s in shapes.items() if ".w2." in n))
    assert host[False] > host[True]
