"""A step on several GPUs, planned by arithmetic, against counts of torch and PEFT and against what must hold of any numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from test_plan import SMALL, checkpoint, recipe, write
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

import tiny
from allo.cli import app
from allo.errors import UserError
from allo.plan import plan_stage
from allo.plan.machine import Machine
from allo.plan.memory import Plan, StagePlan, Step
from allo.plan.several import RANK, Geometry, Way, share, ways
from allo.plan.several_table import show_steps
from benchmarks.plan import several_planned_and_measured
from benchmarks.record import read
from tiny_families import config_of

__all__ = ["checkpoint"]

STEP = Step(
    micro_batches=32,
    rows=4,
    row_tokens=1500,
    length=1000,
    references=1,
    recomputes=False,
    selected=8 * 10**8,
    trained=8 * 10**9,
)
GEOMETRY = Geometry(
    weights=8 * 10**9,
    layer=2 * 10**8,
    root=10**9,
    head=5 * 10**8,
    active=75 * 10**8,
    scores=32 * 4096,
    adapter=2 * 10**6,
    itemsize=2,
)
STAGE = StagePlan(
    "improve",
    "4 pairs of 500 + 500 tokens",
    {
        "weights": 16 * 10**9,
        "state": 16 * 10**9,
        "slots": 16 * 10**8,
        "gradient": 10**9,
        "activations": 2 * 10**10,
    },
    step=STEP,
)


def found(stage: StagePlan, gpus: int, *, nodes: int = 1, geometry: Geometry = GEOMETRY) -> dict[str, Way]:
    return {way.name: way for way in ways(stage, geometry, Machine(gpus, nodes))}


def test_one_gpu_has_the_plans_memory_and_sends_nothing() -> None:
    alone = found(STAGE, 1)
    assert alone["selected, copies"].memory == STAGE.total
    assert {way.sent for way in alone.values()} == {0}


@given(gpus=st.integers(2, 512))
def test_the_shards_of_all_gpus_together_are_the_model_and_its_state(gpus: int) -> None:
    """Further GPUs take away from the shard alone: what is gathered and the rows' memory stay."""
    kept = sum(STAGE.bytes[kind] for kind in ("weights", "state", "slots"))
    fixed = found(STAGE, gpus)["selected, shards"].memory - -(-kept // gpus)
    more = found(STAGE, 2 * gpus)["selected, shards"].memory - -(-kept // (2 * gpus))
    assert fixed == more
    root, head, layer = (2 * size for size in (GEOMETRY.root, GEOMETRY.head, GEOMETRY.layer))
    assert fixed == STAGE.bytes["activations"] + root + head + 4 * layer


def test_a_large_vocabulary_has_its_peak_at_the_end_of_the_pass_backward() -> None:
    """All gradients outside of the layers are sent then, beside the weights that they belong to."""
    few_rows = replace(STAGE, bytes={**STAGE.bytes, "activations": 0})
    kept = sum(STAGE.bytes[kind] for kind in ("weights", "state", "slots"))
    assert found(few_rows, 8)["selected, shards"].memory == kept // 8 + 3 * 2 * GEOMETRY.root


def test_memory_is_the_highest_of_all_moments_on_shards() -> None:
    """The moment that is highest on one GPU need not be, once the weights are gathered layer by layer."""
    other = {**STAGE.bytes, "gradient": 0, "activations": 21 * 10**9}
    forward = replace(STAGE, bytes=other, moments={"backward": STAGE.bytes})
    backward = replace(STAGE, moments={"forward": other})
    assert found(forward, 8) == found(backward, 8)


def test_copies_send_the_flat_gradient_once_a_step_and_shards_their_weights_each_micro_batch() -> None:
    two = found(STAGE, 2)
    assert two["selected, copies"].sent == 4 * STEP.selected, "2 (N - 1) / N of 4 bytes an entry"
    assert two["all, copies"].sent == 2 * GEOMETRY.weights
    weights = 2 * GEOMETRY.weights
    gathered = 3 * weights - 2 * GEOMETRY.root  # for the reference, forward and backward; the root once less
    assert two["selected, shards"].sent == 16 * (gathered + weights) // 2
    assert two["LoRA, shards"].sent == 16 * gathered // 2
    assert two["selected, shards"].sent == two["all, shards"].sent, (
        "gradients are dense until they are scattered"
    )


@pytest.mark.parametrize(
    ("gpus", "rows"),
    [
        (1, [4] * 32),
        (5, [4] * 7),
        (8, [4] * 4),
        (32, [4]),
        (33, [4]),
        (64, [2]),
        (100, [2]),
        (128, [1]),
        (999, [1]),
    ],
)
def test_the_step_is_shared_by_the_gpus_not_multiplied(gpus: int, rows: list[int]) -> None:
    """More GPUs than micro-batches cut them; more GPUs than rows have nothing to do."""
    assert share(STEP, gpus) == rows
    one, several = (found(STAGE, number)["selected, copies"].compute for number in (1, gpus))
    assert several == pytest.approx(one * sum(rows) / 128)


def test_the_slowest_connection_counts() -> None:
    near, far = found(STAGE, 8), found(STAGE, 8, nodes=2)
    for name in near:
        assert near[name].sent == far[name].sent and near[name].wire < far[name].wire
        assert near[name].compute == far[name].compute


def test_gpus_are_counted_on_all_nodes_together() -> None:
    with pytest.raises(UserError, match=r"--gpus 8 --nodes 3.*multiple"):
        Machine(8, 3)


@pytest.mark.parametrize("family", [None, "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_models_numbers_are_those_of_torch(tmp_path: Path, family: str | None, tied: bool) -> None:
    config = tiny.model().config if family is None else config_of(family)
    config.tie_word_embeddings = tied
    config.save_pretrained(tmp_path)
    geometry = Geometry.of(recipe(tmp_path))
    model = AutoModelForCausalLM.from_config(config)
    assert geometry.weights == sum(param.numel() for param in model.parameters())
    layers = [sum(param.numel() for param in layer.parameters()) for layer in model.model.layers]
    assert geometry.layer == max(layers)
    assert geometry.root == geometry.weights - sum(layers)
    assert geometry.itemsize == 4
    ids = torch.randint(4, config.vocab_size, (2, 16))
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    step = replace(STEP, micro_batches=1, rows=2, row_tokens=16, length=16, references=0)
    (way,) = (
        way
        for way in ways(replace(STAGE, step=step), geometry, Machine(1, flops=1.0))
        if way.name == "all, copies"
    )
    # torch counts attention's whole square, and a backward pass of attention as more than twice the pass forward.
    assert way.compute == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_a_token_meets_its_experts_alone(tmp_path: Path) -> None:
    config = config_of("mixtral")
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    routed = sum(param.numel() for name, param in model.named_parameters() if ".experts." in name)
    assert routed
    looked_up = model.get_input_embeddings().weight.numel()
    met = routed * config.num_experts_per_tok // config.num_local_experts
    geometry = Geometry.of(recipe(tmp_path))
    assert geometry.active == geometry.weights - looked_up - routed + met


OTHERS = (
    "bloom",
    "mpt",
    "opt",
    "gptj",
    "mamba2",
    "zamba2",
    "gemma3n_text",
    "llama4_text",
    "deepseek_v3",
    "nemotron_h",
)


def test_models_of_other_forms_have_layers_and_a_rest(tmp_path: Path) -> None:
    for family in OTHERS:
        config_of(family).save_pretrained(tmp_path / family)
        geometry = Geometry.of(recipe(tmp_path / family))
        assert 0 < geometry.layer < geometry.weights - geometry.root, family
        assert 0 < geometry.head <= geometry.root and 0 < geometry.active <= geometry.weights, family


# PEFT asks transformers by a name that transformers has replaced.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_as_large_as_pefts(tmp_path: Path) -> None:
    model = tiny.model()
    model.config.save_pretrained(tmp_path)
    geometry = Geometry.of(recipe(tmp_path))
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))
    assert RANK * geometry.adapter == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("stage", "settings"),
    [("improve", {}), ("improve", {"lean": True, "shared_prefix": False}), ("forget", {})],
)
def test_a_stages_step_is_the_recipes(checkpoint: Path, stage: str, settings: dict[str, Any]) -> None:
    asked = recipe(checkpoint, **{stage: {"training": SMALL, "density": 0.3} | settings})
    step = plan_stage(asked, stage).step
    assert step is not None
    weights = sum(param.numel() for param in tiny.model().parameters())
    assert (step.micro_batches, step.references, step.recomputes) == (2, 1, False)
    assert step.selected == round(0.3 * weights) and step.trained == weights
    assert step.sent_copy == (4 * step.selected if settings.get("lean") else 0)
    # A row has 18 + 12 tokens; a pair has its prompt once, or twice.
    a_row = {"forget": 30, "improve": 60 if settings else 42}[stage]
    assert (step.rows, step.row_tokens) == (3, a_row)


def test_a_precomputed_reference_and_recomputed_layers_are_counted(checkpoint: Path) -> None:
    training = SMALL | {"activation_checkpointing": True}
    asked = recipe(checkpoint, improve={"training": training, "density": 0.3, "reference": "precomputed"})
    step = plan_stage(asked, "improve").step
    assert step is not None and (step.references, step.recomputes) == (0, True)


def test_the_command_shows_steps_on_several_gpus(checkpoint: Path, tmp_path: Path) -> None:
    path = write(recipe(checkpoint, locate={"criterion": "magnitude"}, forget=None), tmp_path)
    shown = CliRunner().invoke(app, ["plan", str(path), "--gpus", "4", "--nodes", "2", "--json"])
    content = json.loads(shown.stdout)
    assert [step["stage"] for step in content["steps"]] == ["improve"] * 6
    assert content["machine"]["bandwidth"] == content["machine"]["network"]
    people = CliRunner().invoke(app, ["plan", str(path), "--gpus", "4", "--gpu", "1GB"]).stdout
    assert "2 micro-batches of 3 pairs" in " ".join(people.split()) and "cut to 2" in people
    for name in ("selected, copies", "selected, shards", "all, shards", "LoRA, copies"):
        assert name in people
    assert "selected, copies" not in CliRunner().invoke(app, ["plan", str(path)]).stdout


def test_every_line_of_a_large_step_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    huge = replace(STEP, micro_batches=10**6, rows=10**3, row_tokens=10**6, selected=10**12)
    stage = replace(
        STAGE, step=huge, load="128 completions of 100000 + 100000 tokens", bytes={"weights": 10**15}
    )
    show_steps(Plan((stage, STAGE), limit=10**9), GEOMETRY, Machine(512, 64, flops=1e9, network=1e6))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80


RECORDS = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").glob("plan-ranks-*.json"))


@pytest.mark.slow  # the plans on one process are held against live steps byte by byte
def test_plans_are_within_15_percent_of_peaks_measured_on_2_and_4_processes(tmp_path: Path) -> None:
    """The peaks are the records', the plans today's."""
    rows = [row for record in RECORDS for row in read(record)]
    assert {(row["way"], row["processes"]) for row in rows} >= {
        (way, processes) for way in several_planned_and_measured.WAYS for processes in (2, 4)
    }
    for name, sizes in several_planned_and_measured.MODELS.items():
        LlamaConfig(**sizes, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / name)
    for row in rows:
        asked = several_planned_and_measured.asked(tmp_path / row["model"])
        planned = several_planned_and_measured.planned(asked, row["way"], row["processes"])
        assert planned == pytest.approx(row["measured, bytes"], rel=0.15), row
