"""A comparison for readers: `comparison.md`, made from its summary alone."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from allo.report import figures
from allo.report.tables import Cell, Table, escaped
from allo.report.tables import to_markdown as table_lines
from allo.stats.statistics import SMALLEST_P

Json = dict[str, Any]

CERTAIN = 0.01  # the corrected p below which a difference is stated


def to_markdown(summary: Json) -> str:
    """Return the claims, then a table per set, the costs, and the tuning trials. No model text occurs."""
    made = summary["made_with"]
    lines = ["# Comparison", "", *(f"- {escaped(claim)}" for claim in claims(summary)), ""]
    lines += [table_lines(table) for table in tables(summary)]
    lines += [f"Commit {escaped(', '.join(made['commits']))}; {escaped('; '.join(made['hardware']))}; "]
    lines += [f"{escaped('; '.join(made['versions']))}."]
    if made["dirty"]:
        lines += [
            "",
            f"{len(made['dirty'])} trials were made from uncommitted changes, or outside a checkout.",
        ]
    if summary["failed"]:
        lines += ["", f"Failed, and left out: {escaped(', '.join(summary['failed']))}."]
    return "\n".join(lines) + "\n"


def claims(summary: Json) -> Iterator[str]:
    """Yield the claims that the figures support, one sentence each; uncertain differences are marked so."""
    reference = summary["reference"]
    for name, other in summary["best_other"].items():
        if other is None:
            continue
        against = summary["methods"][other]["against"]
        if against is None or name not in against["sets"]:
            continue
        kind = next(iter(against["sets"][name]))
        found = against["sets"][name][kind]
        less = found["difference"]
        verdict = (
            "not shown to differ from"
            if found["p_holm"] >= CERTAIN
            else "below"
            if less["value"] < 0
            else "above"
        )
        yield (
            f"On {name}, the best other method, {other}, is {verdict} {reference} in {kind} accuracy: "
            f"{_points(less).text} points {_points(less).note}, p = {p_text(found['p_holm'])} over seeds and problems "
            f"(Holm), {against['seeds']} seeds."
        )
    for method, tuned in summary["tuning"].items():
        robust, equal = tuned["over_rates"]["robustness"], tuned["over_rates"]["equal_accuracy"]
        if robust is not None:
            yield f"{method} stays within 2 points of its best over {_range(robust)}."
        if equal is not None:
            yield (
                f"Where {method} and {reference} both have an accuracy of {figures.percent(equal['accuracy'])}, the KL "
                f"of {method} is {_ratio(equal)} times that of {reference}."
            )


def tables(summary: Json) -> list[Table]:
    found = [_set_table(summary, name) for name in summary["sets"]]
    found.append(_cost_table(summary))
    return found + [_tuning_table(method, tuned) for method, tuned in summary["tuning"].items()]


def _set_table(summary: Json, name: str) -> Table:
    reference, size = summary["reference"], summary["sets"][name]
    entries = {m: entry for m, entry in summary["methods"].items() if name in entry["sets"]}
    kinds = list(dict.fromkeys(kind for entry in entries.values() for kind in entry["sets"][name]))
    tested = [kind for kind in kinds if kind in ("sampled", "greedy")]
    others = [kind for kind in kinds if kind not in tested and kind != "tokens"]
    columns = ["Method", "Sees", "Seeds"]
    for kind in tested:
        columns += [
            f"{kind.capitalize()}, %",
            f"less {reference}, points",
            "p, Holm's",
            "over seeds",
        ]
    rows = []
    for method, entry in entries.items():
        own, against = entry["sets"][name], (entry["against"] or {}).get("sets", {}).get(name, {})
        cells = [Cell(method), _sees(entry), Cell(str(len(entry["seeds"])))]
        for kind in tested:
            compared = against.get(kind)
            cells += [_share(own.get(kind)), _points(compared["difference"] if compared else None)]
            cells += [Cell(p_text(compared.get(p) if compared else None)) for p in ("p_holm", "p_seeds")]
        rows.append(
            (*cells, *(_share(own.get(kind)) for kind in others), _number(own.get("tokens"), digits=1))
        )
    return Table(
        title=name,
        columns=(*columns, *others, "Mean tokens"),
        rows=tuple(rows),
        remark=(
            f"{size['prompts']} problems, {size['samples']} samples each. Intervals at 95% and p are for other seeds "
            "and other problems; p over seeds flips the signs of whole seeds "
            "(with 5 it is never below 0.0625) and is not corrected. Holm's correction counts every method and set."
        ),
    )


def _cost_table(summary: Json) -> Table:
    rows = []
    for method, entry in summary["methods"].items():
        cost, against = entry["cost"], (entry["against"] or {}).get("kl")
        weights = cost["trained_weights"] or {"value": None}
        rows.append(
            (
                Cell(method),
                _sees(entry),
                Cell(_settings(entry["settings"])),
                _number(entry["kl"], digits=4),
                _number(against["difference"] if against else None, digits=4),
                Cell(p_text(against["p_holm"] if against else None)),
                _number(entry["chosen_drop"], digits=4),
                Cell(figures.seconds((cost["seconds"] or {}).get("value"))),
                Cell(figures.size((cost["peak_memory_bytes"] or {}).get("value"))),
                Cell(figures.size((cost["training_state_bytes"] or {}).get("value"))),
                Cell(figures.count(weights["value"])),
            )
        )
    reference = summary["reference"]
    return Table(
        title="What it changed and took",
        columns=(
            *("Method", "Sees", "Settings", "KL to start, nats a token", f"less {reference}", "p, Holm's"),
            *("Drop of chosen, nats a token", "Time", "Peak memory", "Training state", "Weights trained"),
        ),
        rows=tuple(rows),
    )


def _tuning_table(method: str, tuned: Json) -> Table:
    taken = tuned["taken"]
    rows = [
        (
            Cell(f"{one['rate']:g}"),
            Cell(_settings(one["settings"])),
            _share(one["accuracy"]),
            Cell(figures.decimal(one["kl"], digits=4)),
            Cell("yes" if {"rate": one["rate"], **one["settings"]} == taken else ""),
        )
        for one in tuned["tried"]
    ]
    return Table(
        title=f"Tuning of {method}",
        columns=("Rate", "Settings", f"Accuracy on {tuned['set']}", "KL to start", "Taken"),
        rows=tuple(rows),
    )


def p_text(p: float | None) -> str:
    """Return a p with two digits; the smallest that a test gives is shown as a bound."""
    return figures.ABSENT if p is None else f"<= {SMALLEST_P:g}" if p <= SMALLEST_P else f"{p:.2g}"


def _sees(entry: Json) -> Cell:
    return Cell(", ".join(entry["sees"]) or figures.ABSENT)


def _share(figure: Json | None, *, form: Callable[[float | None], str] = figures.percent) -> Cell:
    if figure is None:
        return Cell(figures.ABSENT)
    return Cell(form(figure["value"]), figures.percent_interval(figure["low"], figure["high"]))


_points = partial(_share, form=figures.points)


def _number(figure: Json | None, *, digits: int) -> Cell:
    if figure is None:
        return Cell(figures.ABSENT)
    known = figure["low"] is not None and figure["high"] is not None
    interval = figures.interval(figure["low"], figure["high"], digits=digits) if known else ""
    return Cell(figures.decimal(figure["value"], digits=digits), interval)


def _settings(settings: Json) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or figures.ABSENT


def _range(robust: Json) -> str:
    ends = " and ".join(side for side in ("below", "above") if robust[f"open_{side}"])
    interval = figures.interval(robust["low"], robust["high"], digits=1)
    text = f"a {robust['ratio']:.3g}-fold range of learning rates {interval}"
    return f"at least {text}, as none further {ends} was tried" if ends else text


def _ratio(equal: Json) -> str:
    if equal["low"] is None:
        return f"{equal['ratio']:.3g} (no interval: too many draws have no such accuracy)"
    return f"{equal['ratio']:.3g} {figures.interval(equal['low'], equal['high'], digits=2)}"
