"""A plan for readers: a table, the meaning of its columns, and settings to change."""

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from allo.console import cell
from allo.plan.memory import KINDS, Plan, StagePlan

_GB = 10**9
_WIDTH = 100  # of the table, even on a narrower terminal, so that its headings stay readable


def show(plan: Plan, *, gpus: int) -> None:
    """Print the table to standard output, with the formula below it."""
    console = Console(highlight=False, emoji=False)
    console.print(_table(plan), width=max(console.width, _WIDTH), crop=False)
    console.print(cell(explanation(plan, gpus=gpus)), soft_wrap=True)


def _table(plan: Plan) -> Table:
    kinds = [kind for kind in KINDS if any(stage.bytes.get(kind) for stage in plan.stages)]
    table = Table(title="Peak memory on the device, GB", box=SIMPLE_HEAD)
    table.add_column("stage")
    for kind in kinds:
        table.add_column(kind, justify="right")
    table.add_column("total", justify="right", style="bold")
    table.add_column("host", justify="right", style="dim")
    if plan.limit is not None:
        table.add_column("fits")
    for stage in plan.stages:
        cells = [_gigabytes(stage.bytes.get(kind, 0)) for kind in kinds]
        verdict = [] if plan.limit is None else ["yes" if plan.fits(stage) else "no"]
        table.add_row(stage.stage, *cells, _gigabytes(stage.total), _gigabytes(stage.host), *verdict)
    return table


def explanation(plan: Plan, *, gpus: int) -> str:
    """Return the formula in words, the rows that it assumes, and the advice."""
    lines = ["total = " + " + ".join(KINDS), ""]
    lines += [f"  {kind:<12} {meaning}" for kind, meaning in KINDS.items()]
    lines += [
        f"  {'host':<12} in the host's memory; if the device is the CPU, add it to the total",
        "",
        "Each stage at its longest rows:",
        *(f"  {stage.stage:<12} {stage.load}" for stage in plan.stages),
        "",
        "Counted: the tensors that torch's operations allocate. Not counted: what CUDA keeps for itself",
        "(about 0.5 GB), the scratch of kernels, and memory that the allocator holds unused.",
    ]
    if gpus > 1:
        lines += [
            "",
            f"On {gpus} GPUs each holds all of this: nothing is sharded. For the same rows a step, divide "
            f"gradient_accumulation_steps by {gpus}.",
        ]
    for stage in plan.stages:
        if not plan.fits(stage):
            lines += ["", *_advice(plan, stage)]
    if plan.unplanned:
        lines += ["", *(f"Not planned: {stage}, {why}." for stage, why in plan.unplanned.items())]
    elif plan.limit is not None and all(map(plan.fits, plan.stages)):
        lines += ["", f"All stages fit into {_gigabytes(plan.limit)} GB."]
    return "\n".join(lines)


def _advice(plan: Plan, stage: StagePlan) -> list[str]:
    assert plan.limit is not None
    advised = plan.advice[stage.stage]
    limit = _gigabytes(plan.limit)
    if advised.plan is None:
        return [f"{stage.stage} does not fit into {limit} GB under any setting that allo knows."]
    return [
        f"{stage.stage} fits into {limit} GB, with {_gigabytes(advised.plan.total)} GB, under",
        *(f"  --set {key}={json.dumps(value)}" for key, value in advised.settings.items()),
    ]


def as_json(plan: Plan, *, gpus: int) -> dict[str, Any]:
    """Return the plan for machines, with sizes in bytes."""
    return {
        "limit": plan.limit,
        "gpus": gpus,
        "peak": plan.peak,
        "stages": [_stage(plan, stage) for stage in plan.stages],
        "unplanned": list(plan.unplanned),
    }


def _stage(plan: Plan, stage: StagePlan) -> dict[str, Any]:
    kinds = {kind: stage.bytes.get(kind, 0) for kind in KINDS}
    found = {
        "stage": stage.stage,
        "load": stage.load,
        "bytes": kinds,
        "total": stage.total,
        "host": stage.host,
    }
    if plan.limit is None:
        return found
    advised = plan.advice.get(stage.stage)
    return found | {
        "fits": plan.fits(stage),
        "settings": dict(advised.settings) if advised else {},
        "advised_total": advised.plan.total if advised and advised.plan else None,
    }


def _gigabytes(number: float) -> str:
    """Return gigabytes with two decimals, or four below a tenth: small models are planned, too."""
    value = number / _GB
    return "-" if not number else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
