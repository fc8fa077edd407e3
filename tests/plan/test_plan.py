"""A plan is what a run takes: held against live steps of a small model, tensor by tensor."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny
from allo.cli import app
from allo.errors import UserError
from allo.models.block_attention import BlockMask, mask_of
from allo.models.load import load_model
from allo.plan import plan, plan_stage
from allo.plan.advice import advise, with_settings
from allo.plan.live_bytes import LiveBytes
from allo.plan.memory import KINDS, parse_size
from allo.plan.training import spread_mask, take_a_step
from allo.recipe import Recipe
from allo.training.run import state_bytes
from allo.training.trainer import ImproveTrainer
from allo.weights.param_mask import ParamMask

# Alive after a forward pass and not saved for the backward pass: the batch, the loss and its metrics.
NOT_SAVED = 0.03
SMALL = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
DENSE = {"criterion": "warmup", "training": SMALL}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.model().save_pretrained(folder)
    return folder


def recipe(checkpoint: Path, **blocks: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "plan",
        "model": str(checkpoint),
        "dtype": "float32",
        "device": "cpu",
        "max_length": 30,
        "data": {"task": "planted_flaws"},
        "sample": {"num_generations": 2, "max_new_tokens": 12, "batch_size": 8},
        "locate": {"training": SMALL},
        "score": {"batch_size": 4},
        "forget": {"training": SMALL, "density": 0.3},
        "improve": {"training": SMALL, "density": 0.3},
        "evaluate": {"sets": {"test": {"task": "planted_flaws"}}, "max_new_tokens": 12, "batch_size": 8},
    }
    return Recipe.model_validate(fields | blocks)


def policy(checkpoint: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(checkpoint, dtype=dtype, device="cpu")


@pytest.mark.invariant("A plan is the live step's peak to the byte.")
@pytest.mark.parametrize(
    ("stage", "dtype", "settings"),
    [
        ("forget", "float32", {}),
        ("forget", "bfloat16", {"max_tokens_per_batch": 60}),
        ("improve", "bfloat16", {}),
        ("improve", "bfloat16", {"training": SMALL | {"activation_checkpointing": True}}),
        ("improve", "float32", {"reference": "precomputed"}),
        ("improve", "float32", {"shared_prefix": False}),
        ("improve", "bfloat16", {"lean": True}),
        ("improve", "float32", {"loss": "simpo", "keep": 1.0}),
        ("improve", "float32", {"loss": "rft", "keep": 1.0}),
    ],
)
def test_a_plan_is_the_live_steps_peak_to_the_byte(
    checkpoint: Path,
    tmp_path: Path,
    stage: str,
    dtype: str,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With attention as on a GPU, by a mask; a CPU takes less for rows with several answers."""
    monkeypatch.setattr(BlockMask, "of", mask_of)
    asked = recipe(checkpoint, dtype=dtype, **{stage: {"training": SMALL, "density": 0.3} | settings})
    live = LiveBytes()
    with live:
        take_a_step(policy(checkpoint, getattr(torch, dtype)), asked, stage, live, tmp_path)
    planned = plan_stage(asked, stage)
    found = {kind: number for kind, number in live.at_peak.items() if number and kind != "host"}
    assert found == {kind: number for kind, number in planned.bytes.items() if number}


@pytest.mark.parametrize("stage", ["forget", "improve"])
def test_planned_state_is_the_live_objects(checkpoint: Path, tmp_path: Path, stage: str) -> None:
    asked = recipe(checkpoint)
    trainer = take_a_step(policy(checkpoint), asked, stage, LiveBytes(), tmp_path)
    planned = plan_stage(asked, stage).bytes
    assert planned["state"] + planned["slots"] == state_bytes(trainer)


def test_the_warm_ups_state_is_the_live_objects(checkpoint: Path, tmp_path: Path) -> None:
    planned = plan_stage(recipe(checkpoint, locate=DENSE), "locate").bytes
    model = policy(checkpoint)
    trainer = tiny.trained(
        ImproveTrainer, tiny.pairs(), tmp_path, policy=model, mask=tiny.full_mask(model), max_steps=1
    )
    assert planned["state"] + planned["slots"] == state_bytes(trainer)


@pytest.mark.parametrize(
    ("criterion", "host"), [("gradient", 4), ("taylor", 4), ("fisher", 4), ("warmup_fused", 8)]
)
def test_locating_without_an_optimizer_is_planned_without_one(
    checkpoint: Path, criterion: str, host: int
) -> None:
    plain = plan_stage(recipe(checkpoint, locate=DENSE), "locate")
    planned = plan_stage(
        recipe(
            checkpoint, locate={"criterion": criterion, "training": SMALL}, score={"scorer": "confidence"}
        ),
        "locate",
    )
    weights = sum(param.nbytes for param in policy(checkpoint).parameters())
    assert planned.host == host // 4 * weights, "fp32 sums; fp32 deltas and the fp32 start"
    assert planned.bytes["weights"] == plain.bytes["weights"]
    rows_and_columns = sum(
        4 * (len(param) + param[0].numel()) if param.ndim > 1 else 4 * (len(param) + 1)
        for param in policy(checkpoint).parameters()
    )
    assert planned.bytes["state"] <= (rows_and_columns if criterion == "warmup_fused" else 0)
    assert 0 < planned.bytes["activations"] <= plain.bytes["activations"]
    assert planned.total < plain.total - 3 * weights


def test_the_bytes_alive_after_a_forward_pass_are_those_saved_for_the_backward_pass(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = policy(checkpoint)
    arguments = tiny.arguments(tmp_path, max_steps=1)
    trainer = ImproveTrainer(model, arguments, tiny.pairs(), tiny.TOKENIZER, mask=tiny.every_third(model))
    batch = trainer.data_collator(trainer.train_dataset[:4])
    weights = {param.untyped_storage()._cdata for param in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        live.hold([*model.parameters(), *batch.values()], "before")
        live.hold(trainer.selected.slot("ref").values(), "slots")
        before = live.now
        loss = trainer.loss(batch, denominator=4.0)
        alive = live.now - before
    assert loss.isfinite()
    assert sum(saved.values()) == pytest.approx(alive, rel=NOT_SAVED)


@pytest.mark.parametrize("density", [0.03, 0.3, 0.9, 1.0])
def test_a_spread_mask_selects_exactly_the_density(density: float) -> None:
    """Also where a tensor has one weight, as Apertus' activations, and where all of a tensor are selected."""
    model = tiny.model()
    model.alphas = torch.nn.ParameterList(torch.ones(size) for size in [1] * 8 + [2, 3, 5])
    mask = spread_mask(model, density=density)
    whole = ParamMask(dict(mask.indices), shapes=tiny.shapes(model))
    assert whole.num_selected == round(density * whole.num_weights)


@pytest.mark.parametrize(
    "stage", ["sample", "score", pytest.param("forget", marks=pytest.mark.slow), "improve", "evaluate"]
)
def test_advice_turns_what_does_not_fit_into_what_does(checkpoint: Path, stage: str) -> None:
    asked = recipe(checkpoint)
    before = plan_stage(asked, stage)
    advised = advise(asked, before, limit=before.total - 1)
    assert advised.plan is not None and advised.settings
    changed = with_settings(asked, advised.settings)
    assert changed is not None
    assert plan_stage(changed, stage).total == advised.plan.total < before.total


def test_advice_keeps_the_rows_of_an_optimizer_step(checkpoint: Path) -> None:
    asked = recipe(checkpoint)
    before = plan_stage(asked, "forget")
    settings = advise(asked, before, limit=before.total - 1).settings
    size = settings["forget.training.per_device_train_batch_size"]
    steps = settings["forget.training.gradient_accumulation_steps"]
    assert size * steps == 3 * 2


def test_where_nothing_helps_the_advice_says_so(checkpoint: Path) -> None:
    weights = sum(param.nbytes for param in tiny.model().parameters())
    asked = recipe(checkpoint)
    found = advise(asked, plan_stage(asked, "improve"), limit=weights)
    assert found.plan is None and not found.settings


@pytest.mark.parametrize(
    ("text", "number"), [("24GB", 24 * 10**9), ("22.5 GiB", 225 * 2**30 // 10), ("800MB", 8 * 10**8)]
)
def test_sizes(text: str, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["24XB", "24", "GB", "-1GB", "0GB", "1e3GB", ""])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--gpu.*24GB"):
        parse_size(text)


def write(asked: Recipe, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(asked.model_dump_json())  # JSON is YAML
    return path


def test_the_command_prints_what_was_planned_for_people_and_machines(
    checkpoint: Path, tmp_path: Path
) -> None:
    asked = recipe(checkpoint, locate=None, forget=None, improve={"training": SMALL, "density": 1.0})
    path = write(asked, tmp_path)
    planned = plan(asked)
    machines = CliRunner().invoke(app, ["plan", str(path), "--json"])
    found = json.loads(machines.stdout)
    assert found["peak"] == planned.peak
    for stage in found["stages"]:
        assert stage["bytes"].keys() == KINDS.keys() and sum(stage["bytes"].values()) == stage["total"]
    limit = f"{planned.peak // 10**3 - 1}KB"
    people = CliRunner().invoke(app, ["plan", str(path), "--gpu", limit, "--gpus", "2"])
    assert "total = weights + state" in people.stdout
    assert "--set improve.training.per_device_train_batch_size=" in people.stdout
    assert "A step of improve on 2 GPUs" in people.stdout


def test_a_bad_size_is_refused_before_torch_is_loaded() -> None:
    program = (
        "import sys; sys.argv = ['allo', 'plan', 'absent.yaml', '--gpu', '24XB']\n"
        "from allo.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "24XB" in done.stderr
