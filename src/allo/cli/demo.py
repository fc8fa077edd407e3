"""The demo: the bundled laboratory model aligned twice on the same pairs, by plain DPO and by ALLO."""

import json
import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from allo.cli.shared import count_tokens
from allo.console import Among, cell, note, showing
from allo.files.artifacts import RunFolder, read_json
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe


def run_demo(out: Path) -> Path:
    """Run both recipes below `out`, print their table, and return the path of the report on both."""
    # The model is small: on a busy machine, waiting for a second thread took longer than its work.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    package = files("allo")
    with as_file(package / "lab") as model, as_file(package / "demo") as recipes:
        place = [f"out={json.dumps(str(out))}", f"model={json.dumps(str(model))}"]
        allo = load_recipe(recipes / "allo.yaml", place)
        sampled = _part(1, "the pairs of both", allo, until="pair")
        pairs = f"data.pairs={json.dumps(str(sampled.pairs))}"
        dpo = _part(2, "plain DPO", load_recipe(recipes / "dpo.yaml", [*place, pairs]))
        aligned = _part(3, "ALLO", allo)
    # imported late, as the pipeline imports its stages
    from allo.stages.report import write_report

    html, _ = write_report([dpo.path, aligned.path], out, title="Demo: plain DPO and ALLO")
    Console().print(_table(dpo, aligned))
    return html


def _part(number: int, name: str, recipe: Recipe, *, until: str | None = None) -> RunFolder:
    """Run one of the demo's three parts, up to a stage."""
    note("demo", f"part {number} of 3: {name}")
    with showing(Among(f"part {number} of 3")):
        return run_all(recipe, until=until, tokens=count_tokens)


def _table(dpo: RunFolder, allo: RunFolder) -> Table:
    """Return a table with one row per model: sampled accuracy with its interval on each set, and the costs."""
    ours = read_json(allo.evaluation)["models"]
    rows = {
        "start": ours["start"],
        "plain DPO": read_json(dpo.evaluation)["models"]["aligned"],
        "ALLO": ours["aligned"],
    }
    sets = list(ours["start"]["sets"])
    table = Table("model", *sets, "KL to start", "weights trained", "seconds", "training state")
    for label, model in rows.items():
        sampled = (model["sets"][name]["sampled"] for name in sets)
        accuracies = [f"{one['accuracy']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in sampled]
        table.add_row(*map(cell, (label, *accuracies, *_costs(model))))
    return table


def _costs(model: dict[str, Any]) -> list[str]:
    if model["kl"] is None:
        return ["–", "–", "–", "–"]
    return [
        f"{model['kl']['value']:.4f}",
        f"{model['trained_weights']:,}",
        f"{model['seconds']:.0f}",
        f"{model['training_state_bytes'] / 1e6:.1f} MB",
    ]
