"""The figures of one or several judged models, for readers."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from allo.console import cell

_WIDTH = 130  # of the table, even on a narrower terminal, so that its headings stay readable
_ABSENT = "–"


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print one row per record to standard output, and below it the unread replies."""
    console = Console(highlight=False, emoji=False, width=max(Console().width, _WIDTH))
    table = Table(box=SIMPLE_HEAD)
    for name in ("set", "model", "against"):
        table.add_column(name)
    for name in ("win rate", "at equal length", "first is better", "orders agree", "prompts"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*map(cell, _row(record)))
    console.print(table)
    for record in records:
        for line in remarks(record):
            console.print(cell(line), soft_wrap=True)


def _row(record: dict[str, Any]) -> list[str]:
    found, counts = record["summary"], record["counts"]
    return [
        record["set"],
        record["model"]["name"],
        record["baseline"]["name"],
        _interval(found["win_rate"]),
        _interval(found["length_controlled"]),
        _signed(found.get("position_bias")),
        _percent(found.get("agreement")),
        f"{found['num_prompts']} of {counts['prompts']}",
    ]


def remarks(record: dict[str, Any]) -> list[str]:
    """Return remarks on the replies behind the figures: unread, unmatched, identical, cost."""
    found, counts = record["summary"], record["counts"]
    name = " of ".join(dict.fromkeys((record["model"]["name"], record["set"])))
    lines = []
    if counts["unread"]:
        unread = ", ".join(f"{number} {reason}" for reason, number in counts["unread"].items())
        line = f"{name}: replies without a verdict: {unread}"
        if found["win_rate"] is not None:
            low, high = found["win_rate_if_unread_lost"], found["win_rate_if_unread_won"]
            line += f"; over all prompts the win rate is between {_percent(low)} and {_percent(high)}"
        lines.append(line)
    if counts["without_counterpart"]:
        lines.append(
            f"{name}: {counts['without_counterpart']} answers have no counterpart, and were not judged"
        )
    if counts["identical"]:
        lines.append(
            f"{name}: {counts['identical']} pairs of identical answers are ties, and were not asked about"
        )
    tokens = f"{counts['prompt_tokens']:,} prompt and {counts['completion_tokens']:,} completion tokens"
    cost = f", cost {counts['cost']:.4g}" if "cost" in counts else ""
    return [*lines, f"{name}: {counts['replies']} replies of {record['judge']['model']}: {tokens}{cost}"]


def _interval(found: dict[str, float] | None) -> str:
    if found is None:
        return _ABSENT
    return f"{_percent(found['value'])} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _percent(share: float | None) -> str:
    return _ABSENT if share is None else f"{100 * share:.1f}%"


def _signed(share: float | None) -> str:
    return _ABSENT if share is None else f"{100 * share:+.1f}%"
