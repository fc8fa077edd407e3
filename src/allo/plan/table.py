"""A plan for readers: a table, the meaning of its columns, and settings to change."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from allo.console import cell
from allo.plan import duration
from allo.plan.memory import KINDS, Plan, StagePlan

_GB = 10**9
WIDTH = 80  # of every line


def show(plan: Plan, *, gpus: int) -> None:
    """Print the table to standard output, with the formula below it."""
    console = Console(highlight=False, emoji=False)
    console.print(_table(plan), width=WIDTH, crop=False)
    console.print(cell(explanation(plan, gpus=gpus)), soft_wrap=True)


def wrapped(text: str, *, indent: str = "") -> str:
    """Return a text in lines of at most `WIDTH` columns; further lines begin with `indent`."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _table(plan: Plan) -> Table:
    """Return a table with one column per stage and one line per kind of memory."""
    table = Table(
        title="Peak memory on the device, GB", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("")
    for stage in plan.stages:
        table.add_column(stage.stage, justify="right")
    for kind in KINDS:
        if any(stage.bytes.get(kind) for stage in plan.stages):
            table.add_row(*map(cell, (kind, *(gigabytes(stage.bytes.get(kind, 0)) for stage in plan.stages))))
    table.add_row(*map(cell, ("total", *(gigabytes(stage.total) for stage in plan.stages))), style="bold")
    table.add_row(*map(cell, ("host", *(gigabytes(stage.host) for stage in plan.stages))), style="dim")
    if plan.limit is not None:
        table.add_row(*map(cell, ("fits", *("yes" if plan.fits(stage) else "no" for stage in plan.stages))))
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
        "Counted: the tensors that torch's operations allocate. Not counted: what CUDA keeps for itself "
        "(about 0.5 GB), the scratch of kernels, and memory that the allocator holds unused.",
    ]
    if gpus > 1:
        lines += ["", "This is for one GPU. A step on several follows below."]
    for stage in plan.stages:
        if not plan.fits(stage):
            lines += ["", *_advice(plan, stage, where=" on one GPU" if gpus > 1 else "")]
    if plan.unplanned:
        lines += ["", *(f"Not planned: {stage}, {why}." for stage, why in plan.unplanned.items())]
    elif plan.limit is not None and all(map(plan.fits, plan.stages)):
        lines += ["", f"All stages fit into {gigabytes(plan.limit)} GB."]
    return "\n".join(wrapped(line, indent=" " * 15 if line.startswith("  ") else "") for line in lines)


def _advice(plan: Plan, stage: StagePlan, *, where: str) -> list[str]:
    assert plan.limit is not None
    advised = plan.advice[stage.stage]
    limit = gigabytes(plan.limit)
    if advised.plan is None:
        return [f"{stage.stage} does not fit into {limit} GB{where} under any setting that allo knows."]
    return [
        f"{stage.stage} fits into {limit} GB{where}, with {gigabytes(advised.plan.total)} GB, under",
        *(f"  --set {key}={json.dumps(value)}" for key, value in advised.settings.items()),
    ]


def times(tokens: Mapping[str, int] | str | None, rate: float | None) -> str:
    """Return the tokens of each stage in words and, with a rate, their time.

    `tokens` is a reason if they are not known, and None without a recipe.
    """
    if tokens is None:
        return ""
    if isinstance(tokens, str):
        return "\n" + wrapped(f"Time: not estimated, since the rows cannot be read: {tokens}")
    counted = {**tokens, "all": sum(tokens.values())}
    lines = ["", "Tokens, counted as trained ones" if rate is None else f"Time at {rate:,g} tokens a second"]
    for stage, number in counted.items():
        time = "" if rate is None else f"  {duration.words(number / rate):>14}"
        lines.append(f"  {stage:<12} {number:>18,} tokens{time}")
    lines += ["", wrapped(duration.ASSUMED)]
    if rate is None:
        lines.append(wrapped(HOW))
    return "\n".join(lines)


HOW = (
    "For the time, give --tokens-per-second N. Measure N on the same machine: run the recipe with --set data.limit=64, and "
    "divide the tokens of `improve` in its plan by the seconds of `improve` that the run prints."
)


def as_json(
    plan: Plan, *, gpus: int, tokens: Mapping[str, int] | str | None = None, rate: float | None = None
) -> dict[str, Any]:
    """Return the plan for machines, with sizes in bytes and times in seconds."""
    known = tokens if isinstance(tokens, Mapping) else None
    seconds = (
        None if known is None or rate is None else {stage: number / rate for stage, number in known.items()}
    )
    return {
        "limit": plan.limit,
        "gpus": gpus,
        "peak": plan.peak,
        "stages": [_stage(plan, stage) for stage in plan.stages],
        "unplanned": list(plan.unplanned),
        "tokens": known,
        "seconds": seconds,
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


def gigabytes(number: float) -> str:
    """Return gigabytes with two decimals, or four below a tenth: small models are planned, too."""
    value = number / _GB
    return "-" if not number else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
