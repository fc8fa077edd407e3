"""A run's masks as the report shows them: a heat map of each, its figures as a table, and its experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from allo.report import charts, figures
from allo.report.experts import chosen_among, expert_table
from allo.report.run_view import RunView
from allo.report.tables import Cell, Table

if TYPE_CHECKING:
    from allo.weights.param_mask import MaskRow


@dataclass(frozen=True)
class Density:
    """One stage's mask as a heat map and as a table, and its most selected experts, if it has any."""

    stage: str
    overall: str
    chart: Markup
    table: Table
    experts: Table | None


def densities(run: RunView) -> list[Density]:
    """Return each of a run's masks; their colours have one scale."""
    found = []
    for stage, mask in run.masks.items():
        selected, total = sum(row.selected for row in mask), sum(row.total for row in mask)
        share = figures.density(selected / max(1, total))
        overall = f"{share} of all weights: {figures.count(selected)} of {figures.count(total)}"
        overall += chosen_among(run.among.get(stage, {}))
        title = f"density of the {stage} mask by layer and kind of tensor, {share} of all weights"
        chart = charts.heat_map(title, mask, most=densest(run))
        experts = expert_table(run.experts.get(stage, ()), selected=selected)
        found.append(Density(figures.name(stage), overall, chart, _table(stage, mask), experts))
    return found


def densest(run: RunView) -> float:
    """Return the largest density of a tensor in any of a run's masks."""
    return max(
        (row.selected / row.total for mask in run.masks.values() for row in mask if row.total), default=0.0
    )


def _table(stage: str, mask: "Sequence[MaskRow]") -> Table:
    layers, kinds = charts.places(mask)
    shares = {(row.layer, row.kind): row.selected / row.total for row in mask if row.total}
    return Table(
        title=f"Density, {figures.name(stage)}",
        columns=("Layer", *map(figures.name, kinds)),
        rows=tuple(
            (
                Cell("other" if layer == "-" else figures.name(layer)),
                *(Cell(figures.density(shares.get((layer, kind)))) for kind in kinds),
            )
            for layer in layers
        ),
    )
