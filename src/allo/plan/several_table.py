"""A training step on several GPUs for readers: a table for each stage, and the formulas behind it."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from allo.console import cell, tell
from allo.plan.machine import Machine
from allo.plan.memory import Plan, StagePlan
from allo.plan.several import RANK, Geometry, Way, share, ways
from allo.plan.table import WIDTH, gigabytes, wrapped

_FORMULAS = (
    "copies, memory: what the plan above has for one GPU. All weights: weights, gradient, fp32 masters and two fp32 moments, "
    "a second model as the reference, and the same rows' activations.",
    f"LoRA: rank {RANK} on every matrix of the layers; its reference is the model without it.",
    "shards, memory: (weights + state) / GPUs, the largest layer twice, what is outside of the layers, and activations; in "
    "the pass backward also a layer's gradient and its copy to send, and the head's gradient.",
    "copies, sent: 2 (GPUs - 1) / GPUs x the gradient's bytes, once a step. Of selected weights it has 4 bytes an entry.",
    "shards, sent, a micro-batch: (GPUs - 1) / GPUs x the weights' bytes, once forward, once backward and once for the "
    "reference, and once for gradients. What is outside of the layers stays for the pass backward.",
    "compute: micro-batches x tokens x passes x (2 x weights that a token meets + 2 x width of all heads x row length) / "
    "FLOP/s. A pass backward counts twice (once for LoRA), a reference or a recomputed pass once.",
    "wire: sent / bandwidth. Copies wait for it after computing; shards send while they compute, so that a step takes "
    "between the larger of both and their sum.",
)


def show_steps(plan: Plan, geometry: Geometry, machine: Machine) -> None:
    """Print a table for each stage with an optimizer, and the formulas below them."""
    console = Console(highlight=False, emoji=False)
    nodes = f" on {machine.nodes} nodes" if machine.nodes > 1 else ""
    for stage in plan.stages:
        if stage.step is None:
            continue
        tell("")
        tell(wrapped(f"A step of {stage.stage} on {machine.gpus} GPUs{nodes}: {_load(stage, machine)}."))
        console.print(_table(plan, list(ways(stage, geometry, machine))), width=WIDTH, crop=False)
    between = (
        f"{machine.link / 1e9:g} GB/s between GPUs"
        if machine.nodes == 1
        else f"{machine.network / 1e9:g} GB/s from a GPU to another node"
    )
    tell(wrapped(f"Assumed, not measured: {machine.flops / 1e12:g} TFLOP/s that a GPU reaches; {between}."))
    for line in _FORMULAS:
        tell(wrapped(f"  {line}", indent="  "))
    tell(
        wrapped(
            "Other stages deal their rows to the GPUs, each with the whole model, and send next to nothing."
        )
    )


def _load(stage: StagePlan, machine: Machine) -> str:
    """Say how a step's micro-batches are dealt."""
    assert stage.step is not None
    step, own = stage.step, share(stage.step, machine.gpus)
    tokens = f"{step.rows * step.row_tokens:,} tokens"
    dealt = f"{step.micro_batches} micro-batches of {stage.load} ({tokens}), at most {len(own)} a GPU"
    cut = f", cut to {own[0]}" if own[0] < step.rows else ""
    idle = machine.gpus - step.micro_batches * step.rows
    return dealt + cut + (f"; {idle} GPUs have no row" if idle > 0 else "")


def _table(plan: Plan, found: list[Way]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("weights trained")
    for name in ("GB a GPU", "GB sent", "compute, s", "wire, s"):
        table.add_column(name, justify="right")
    if plan.limit is not None:
        table.add_column("fits", justify="right")
    for way in found:
        fits = [] if plan.limit is None else ["yes" if way.memory <= plan.limit else "no"]
        numbers = [gigabytes(way.memory), gigabytes(way.sent), f"{way.compute:.3g}", f"{way.wire:.3g}"]
        table.add_row(*map(cell, (way.name, *numbers, *fits)))
    return table


def steps_as_json(plan: Plan, geometry: Geometry, machine: Machine) -> dict[str, Any]:
    """Return the tables for machines, in bytes and seconds, with what was assumed."""
    return {
        "machine": {**vars(machine), "bandwidth": machine.bandwidth},
        "steps": [
            {"stage": stage.stage, "rows": share(stage.step, machine.gpus), **vars(way)}
            for stage in plan.stages
            if stage.step is not None
            for way in ways(stage, geometry, machine)
        ],
    }
