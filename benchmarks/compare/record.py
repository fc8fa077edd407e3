"""A record of a finished comparison: accuracies or costs of methods, losses, a sweep of one recipe key, or tuning
rates.

    python -m benchmarks.compare.record FOLDER --table lab-methods
    python -m benchmarks.compare.record FOLDER --table lab-methods-costs --costs
    python -m benchmarks.compare.record FOLDER --table lab-short --short
    python -m benchmarks.compare.record FOLDER --table lab-single --methods plain,mask_only,forget_only --reference plain
    python -m benchmarks.compare.record FOLDER --table lab-sweep-density --methods a,b,c --over improve.density
    python -m benchmarks.compare.record FOLDER --table lab-rates --methods allo,dpo --rates
    python -m benchmarks.compare.record FOLDER --table study-losses --methods top,full --losses improve

FOLDER is what `allo compare` wrote, or what `keep.py` kept of it. The record has the commit and machine of the
trials, not of the recording. Trials made from uncommitted changes are refused. `draw.py` plots sweeps, rates and
losses from the records.
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from allo.compare.methods import START
from allo.compare.results import TrialResult, read_results
from allo.compare.summary import by_method, grid, provenance, share_figure, summarise
from allo.errors import UserError
from allo.files.artifacts import write_json
from allo.stats.statistics import RULE, mean_over_seeds
from benchmarks.compare.keep import SUFFIX, unpack

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DIGITS = 4  # of a share or a KL
MB = 1e6
REFERENCE = "allo"

Json = dict[str, Any]
Row = dict[str, Any]


def cell(figure: Json | None, *, digits: int = DIGITS) -> Any:
    """Return a figure as a record's cell; without an interval, a plain number."""
    if figure is None:
        return None
    if figure["low"] is None or figure["high"] is None:
        return round(figure["value"], digits)
    return {key: round(figure[key], digits) for key in ("value", "low", "high")}


def accuracy_row(summary: Json, name: str) -> Row:
    """Return a method's row: for each set, accuracies, pass@k of the largest k, and difference to the reference with
    p.
    """
    entry, reference = summary["methods"][name], summary["reference"]
    against = (entry["against"] or {"sets": {}})["sets"]
    row: Row = {"method": name, "sees": seen(entry), "seeds": len(entry["seeds"])}
    for label, found in entry["sets"].items():
        passes = [kind for kind in found if kind.startswith("pass@")]
        tested = "sampled" if "sampled" in found else "greedy"
        compared = against.get(label, {}).get(tested)
        row[f"{label}, {tested}"] = cell(found[tested])
        row[f"{label}, less {reference}"] = cell(compared["difference"]) if compared else None
        row[f"{label}, p"] = significant(compared["p_holm"]) if compared else None
        for kind in [*(["greedy"] if tested == "sampled" and "greedy" in found else []), *passes[-1:]]:
            row[f"{label}, {kind}"] = cell(found[kind])
    return row


def seen(entry: Json) -> str:
    """Return the kinds of training data that a method sees, separated by commas; empty for the start."""
    return ", ".join(entry["sees"])


def cost_row(summary: Json, name: str) -> Row:
    """Return a method's costs: KL, answer length, drop of the chosen, time, memory and weights."""
    entry, reference = summary["methods"][name], summary["reference"]
    cost, trained = entry["cost"], name != START
    compared = (entry["against"] or {"kl": None})["kl"]
    return {
        "method": name,
        "sees": seen(entry),
        "settings": ", ".join(f"{key} {value}" for key, value in entry["settings"].items()),
        "KL to start, nats a token": cell(entry["kl"]),
        f"KL less {reference}": cell(compared["difference"]) if compared else None,
        "p": significant(compared["p_holm"]) if compared else None,
        **{f"{label}, tokens": cell(found["tokens"], digits=1) for label, found in entry["sets"].items()},
        "drop of chosen, nats a token": cell(entry["chosen_drop"]) if trained else None,
        "seconds": cell(cost["seconds"], digits=1) if trained else None,
        "peak, MB": _millions(cost["peak_memory_bytes"]) if trained else None,
        "state, MB": _millions(cost["training_state_bytes"]) if trained else None,
        "weights trained": round(cost["trained_weights"]["value"]) if trained else None,
    }


def short_row(summary: Json, name: str) -> Row:
    """Return a method in one line: accuracy on each set, KL, seconds and weights trained."""
    accuracies, costs = accuracy_row(summary, name), cost_row(summary, name)
    kinds = [f"{label}, {kind}" for label in summary["sets"] for kind in ("sampled", "greedy")]
    kept = [key for key in kinds if key in accuracies]
    return {
        "method": name,
        "sees": accuracies["sees"],
        **{key: accuracies[key] for key in kept},
        **{key: costs[key] for key in ("KL to start, nats a token", "seconds", "weights trained")},
    }


def significant(p: float) -> float:
    """Round a p to two significant digits."""
    return float(f"{p:.2g}")


def _millions(figure: Json | None) -> float | None:
    return None if figure is None else round(figure["value"] / MB, 2)


def sweep_rows(trials: Sequence[TrialResult], methods: Sequence[str], *, key: str) -> list[Row]:
    """Return one row per method, in order of its recipe's value at `key`: accuracy on each set, and KL."""
    tested = by_method(trial for trial in trials if trial.purpose == "test" and trial.method in methods)
    _check_known(methods, list(tested))
    rows: list[Row] = []
    for name, own in tested.items():
        values = {trial.recipe_value(key) for trial in own}
        if len(values) != 1 or isinstance(next(iter(values)), str | bool | None):
            raise UserError(f"{own[0].path}: {key} of {name} is {values}; a sweep needs one number a method")
        row: Row = {key: float(values.pop()), "method": name, "seeds": len(own)}
        for label in own[0].sets:
            for kind in ("sampled", "greedy"):
                found = grid(own, label, kind)
                row[f"{label}, {kind}"] = None if found is None else cell(share_figure(found))
        kls = [trial.kl.value for trial in own if trial.kl is not None]
        row["KL to start, nats a token"] = _over_seeds(kls) if len(kls) == len(own) else None
        rows.append(row)
    return sorted(rows, key=lambda row: row[key])


def loss_rows(trials: Sequence[TrialResult], methods: Sequence[str], *, stage: str) -> list[Row]:
    """Return a row per logged step of a stage, a column per method: the mean over test seeds, and their range.

    A method's curve ends with its shortest seed, so that every mean is over the same seeds.
    """
    tested = by_method(trial for trial in trials if trial.purpose == "test" and trial.method in methods)
    _check_known(methods, list(tested))
    curves = {name: _curve(tested[name], stage) for name in methods}
    steps = sorted({step for curve in curves.values() for step in curve})
    return [{"step": step, **{name: curve.get(step) for name, curve in curves.items()}} for step in steps]


def _curve(trials: Sequence[TrialResult], stage: str) -> dict[int, Any]:
    """Return one method's cells by optimizer step."""
    key = f"{stage}.training.logging_steps"
    lacking = next((trial for trial in trials if not trial.losses.get(stage)), None)
    if lacking is not None:
        raise UserError(
            f"{lacking.path}: has no losses of {stage}; it has {', '.join(lacking.losses) or 'none'}"
        )
    every = {trial.recipe_value(key) for trial in trials}
    if len(every) != 1 or (between := every.pop()) < 1:
        raise UserError(f"{trials[0].path}: {key} must be one number of steps in all trials of a method")
    at_step = zip(*(trial.losses[stage] for trial in trials), strict=False)
    return {
        int(between * number): cell({"value": sum(losses) / len(losses), **_range(losses)})
        for number, losses in enumerate(at_step, start=1)
    }


def _range(values: Sequence[float]) -> Json:
    """Return the lowest and the highest value; nothing for a single value."""
    return {"low": min(values), "high": max(values)} if len(values) > 1 else {"low": None, "high": None}


def _over_seeds(values: list[float]) -> Any:
    if len(values) == 1:
        return round(values[0], DIGITS)
    found = mean_over_seeds(values)
    return cell({"value": found.value, "low": found.low, "high": found.high})


def rate_rows(summary: Json, methods: Sequence[str]) -> list[Row]:
    """Return a row per method and learning rate: validation accuracy, KL, and the range of rates near the best."""
    _check_known(methods, list(summary["tuning"]))
    rows = []
    for name in methods:
        curve = summary["tuning"][name]["over_rates"]
        robust, equal = curve["robustness"], curve["equal_accuracy"]
        for at in curve["rates"]:
            rows.append(
                {
                    "method": name,
                    "rate": at["rate"],
                    "validation accuracy": cell(at["accuracy"]),
                    "KL to start, nats a token": None if at["kl"] is None else round(at["kl"], DIGITS),
                    "range of rates within 2 points": None
                    if robust is None
                    else {"value": robust["ratio"], "low": robust["low"], "high": robust["high"]},
                    "ends open": None
                    if robust is None
                    else " and ".join(side for side in ("below", "above") if robust[f"open_{side}"]) or "no",
                    f"KL over {summary['reference']}'s at equal accuracy": None
                    if equal is None
                    else cell(
                        {
                            key: equal[name]
                            for key, name in (("value", "ratio"), ("low", "low"), ("high", "high"))
                        },
                        digits=2,
                    ),
                }
            )
    return rows


def record(table: str, rows: list[Row], trials: Sequence[TrialResult], *, command: str) -> Json:
    """Return the record in the form that `scripts/render_tables.py` reads; if commits differ, all are listed."""
    made = provenance(trials)
    if made["dirty"]:
        raise UserError(
            f"{len(made['dirty'])} trials were made from uncommitted changes, or outside a checkout, {made['dirty'][0]} "
            "among them. Commit, remove them, and run the comparison again."
        )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return {
        "schema": 1,
        "table": table,
        "date": datetime.date.today().isoformat(),
        "commit": " ".join(made["commits"]),
        "dirty": False,
        "statistics": RULE,
        "machine": f"{', '.join(made['hardware'])}; {'; '.join(made['versions'])}",
        "command": command,
        "columns": columns,
        "rows": [[row.get(column) for column in columns] for row in rows],
    }


def _check_known(wanted: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        raise UserError(f"no trials of {', '.join(missing)}; there are {', '.join(known)}")


def made(options: argparse.Namespace) -> Json:
    """Return the record that the options ask for."""
    trials = read_results(options.folder)
    purpose = "tune" if options.rates else "test"
    present = sorted(
        {trial.method for trial in trials if trial.purpose == purpose},
        key=lambda name: (name != START, name != options.reference, name),
    )
    methods = options.methods.split(",") if options.methods else present
    if options.over:
        rows = sweep_rows(trials, methods, key=options.over)
    elif options.losses:
        rows = loss_rows(trials, [name for name in methods if name != START], stage=options.losses)
    else:
        summary = summarise(options.folder, reference=options.reference)
        if options.rates:
            rows = rate_rows(summary, [name for name in methods if name != START])
        else:
            _check_known(methods, list(summary["methods"]))
            row = cost_row if options.costs else short_row if options.short else accuracy_row
            rows = [row(summary, name) for name in methods]
    own = [
        trial
        for trial in trials
        if trial.purpose == purpose and trial.method in {*methods, options.reference}
    ]
    given = shlex.join(["python", "-m", "benchmarks.compare.record", options.folder.name, *_given(options)])
    return record(options.table, rows, own, command="; ".join(filter(None, [options.command, given])))


def _given(options: argparse.Namespace) -> list[str]:
    """Return the options that were given, for the record."""
    given = ["--table", options.table]
    given += ["--methods", options.methods] if options.methods else []
    given += ["--reference", options.reference] if options.reference != REFERENCE else []
    given += ["--over", options.over] if options.over else []
    given += ["--losses", options.losses] if options.losses else []
    return given + [f"--{flag}" for flag in ("costs", "short", "rates") if getattr(options, flag)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--table", required=True)
    parser.add_argument("--methods", help="names with commas between, in the table's order; else all")
    parser.add_argument("--reference", default=REFERENCE)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--costs", action="store_true", help="KL, length, time and memory in place of accuracies"
    )
    what.add_argument("--short", action="store_true", help="accuracies, KL, seconds and weights alone")
    what.add_argument("--over", metavar="KEY", help="a sweep: this key of each method's recipe")
    what.add_argument("--losses", metavar="STAGE", help="the losses of forget or improve, over its steps")
    what.add_argument("--rates", action="store_true", help="the tuning trials, over learning rates")
    parser.add_argument("--command", help='what made the trials: "allo compare recipes/lab.yaml"')
    parser.add_argument("--output", type=Path, help="where else than benchmarks/results/TABLE.json")
    options = parser.parse_args(arguments)
    path = options.output or RESULTS / f"{options.table}.json"
    try:
        with TemporaryDirectory() as folder:
            if options.folder.is_file():
                unpacked = Path(folder) / options.folder.name.removesuffix(SUFFIX)
                unpack(options.folder, unpacked)
                options.folder = unpacked
            content = made(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    print(f"recorded: {path.name}, {len(content['rows'])} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
