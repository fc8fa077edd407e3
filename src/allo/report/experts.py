"""A mixture's experts in a mask: a table of constant size, however many there are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from allo.report import figures
from allo.report.tables import Cell, Table

if TYPE_CHECKING:
    from allo.weights.param_mask import MaskRow

_SHOWN = 10


def expert_table(experts: "Sequence[MaskRow]", *, selected: int) -> Table | None:
    """Return the experts with most selected weights, and their share of all `selected`; None without experts."""
    if not experts:
        return None
    ranked = sorted(experts, key=lambda row: -row.selected)
    held, holding = sum(row.selected for row in ranked), sum(row.selected > 0 for row in ranked)
    few = -(-len(ranked) // 10)
    of_few = sum(row.selected for row in ranked[:few])
    remark = (
        f"{figures.count(holding)} of {figures.count(len(ranked))} experts hold selected weights: "
        f"{figures.percent(held / max(1, selected))} of all that are selected, and the {figures.count(few)} that hold "
        f"most have {figures.percent(of_few / max(1, held))} of these"
    )
    return Table(
        title="experts with most selected weights",
        columns=("Expert", "Selected", "Of", "Density"),
        rows=tuple(map(_row, ranked[:_SHOWN])),
        remark=remark,
    )


def _row(row: "MaskRow") -> tuple[Cell, ...]:
    density = row.selected / max(1, row.total)
    return (
        Cell(f"layer {figures.name(row.layer)}, {row.kind}"),
        Cell(figures.count(row.selected), value=row.selected),
        Cell(figures.count(row.total), value=row.total),
        Cell(figures.density(density), value=density),
    )


def chosen_among(header: Mapping[str, str]) -> str:
    """Return the patterns in a mask's header in words, to follow its density; "" without patterns."""
    patterns = [f"{side} {header[side]}" for side in ("include", "exclude") if side in header]
    if not patterns:
        return ""
    number = header.get("num_allowed", "")
    among = figures.count(int(number)) if number.isdecimal() else "some"
    return f", chosen among {among} weights ({figures.printable('; '.join(patterns))})"
