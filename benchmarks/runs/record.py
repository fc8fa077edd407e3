"""One record of finished runs, for the tables: results with intervals and costs, no row of any data set.

    python -m benchmarks.runs.record TABLE RUN... --command "make demo" --machine "2 CPU cores"

Reads each run's `08-eval.json` and `manifest.json`; writes `benchmarks/results/TABLE.json`. A start that several runs
share is recorded once. The recorded commit is that of the evaluation. Stages made from uncommitted changes are
refused.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LABELS = {"start": "start (SFT)", "forgotten": "after forgetting", "improved": "after improving"}


def figure(found: dict[str, Any] | None, *, key: str = "accuracy") -> dict[str, float] | None:
    """Return a value with its interval, rounded to the interval's precision."""
    if found is None:
        return None
    return {"value": round(found[key], 4), "low": round(found["low"], 4), "high": round(found["high"], 4)}


def state_bytes(stages: dict[str, Any]) -> int:
    """Return the larger training state of forgetting and improving."""
    return max(
        stages[stage]["counts"]["training_state_bytes"] for stage in ("forget", "improve") if stage in stages
    )


def names(label: str, result: dict[str, Any]) -> list[str]:
    """Return the columns of an evaluation set."""
    if "rewards" not in result:
        return [f"{label}, {kind}" for kind in ("greedy", "sampled")]
    kinds = list(result["rewards"])
    return [f"{label}, {kind} {what}" for kind in kinds for what in ("wins", "reward")] + [f"{label}, tokens"]


def measured(result: dict[str, Any]) -> list[Any]:
    """Return accuracies; for a reward model's set, the wins against the start, rewards and length."""
    if "rewards" not in result:
        return [figure(result[kind]) for kind in ("greedy", "sampled")]
    kinds = result["rewards"].values()
    figures = [figure(kind[what], key="value") for kind in kinds for what in ("win_rate", "mean")]
    return [*figures, round(result["mean_tokens"], 1)]


def row(label: str, model: dict[str, Any], sets: list[str], *, state: int) -> list[Any]:
    results = [model["sets"][name] for name in sets]
    figures = [one for result in results for one in measured(result)]
    trained = model["trained_weights"] or None
    return [
        label,
        *figures,
        figure(model["kl"], key="value"),
        trained,
        round(model["seconds"]) if trained else None,
        state if trained else None,
    ]


def record(table: str, runs: list[Path], *, command: str, machine: str) -> dict[str, Any]:
    """Return the record in the form that `scripts/render_tables.py` reads."""
    evaluations = [json.loads((run / "08-eval.json").read_text()) for run in runs]
    manifests = [json.loads((run / "manifest.json").read_text())["stages"] for run in runs]
    if any(entry["dirty"] is not False for manifest in manifests for entry in manifest.values()):
        sys.exit(
            "a stage was made from uncommitted changes, or outside a checkout; commit, then run it again"
        )
    first = next(iter(evaluations[0]["models"].values()))["sets"]
    sets = list(first)
    rows = {}
    for run, evaluation, stages in zip(runs, evaluations, manifests, strict=True):
        for name, model in evaluation["models"].items():
            label = LABELS.get(name, run.name if len(runs) > 1 else "aligned")
            rows.setdefault(label, row(label, model, sets, state=state_bytes(stages)))
    order = sorted(rows, key=lambda label: label != LABELS["start"])
    return {
        "schema": 1,
        "table": table,
        "date": datetime.date.today().isoformat(),
        "commit": manifests[0]["evaluate"]["commit"],
        "dirty": False,
        "machine": machine,
        "command": command,
        "columns": [
            "model",
            *(column for name, result in first.items() for column in names(name, result)),
            "KL to start, nats a token",
            "weights trained",
            "seconds",
            "state of forget and improve, bytes",
        ],
        "rows": [rows[label] for label in order],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--command", required=True)
    parser.add_argument("--machine", required=True)
    options = parser.parse_args()
    made = record(options.table, options.runs, command=options.command, machine=options.machine)
    path = ROOT / "benchmarks" / "results" / f"{options.table}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
