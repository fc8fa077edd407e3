"""Results on held-out pairs in the report's tables."""

from collections.abc import Sequence

from allo.files.evaluation import HeldOut, Rate
from allo.report import figures
from allo.report.tables import Cell, Model, Table, rate

COLUMNS = (
    *("Reward accuracy", "Margin", "Likelihood accuracy"),
    *("Chosen", "Rejected", "Chosen, a token", "Rejected, a token"),
)


def held_out_tables(rows: Sequence[Model]) -> list[Table]:
    """Return the table of held-out pairs, with one row per model; no table if none was measured on pairs."""
    known = [(row, row.result.held_out) for row in rows if row.result.held_out]
    if not known:
        return []
    counts = dict.fromkeys(_counted(found) for _, found in known)
    return [
        Table(
            title="Held-out pairs",
            columns=("Model", *COLUMNS),
            rows=tuple((Cell(row.label), *_cells(found)) for row, found in known),
            remark=f"{'; '.join(counts)}. A pair is right by its reward if its margin is above 0: beta times the "
            "log-ratio to the start of the chosen answer, less that of the rejected one; at the start every margin is "
            "0. It is right by likelihood if the chosen answer is the likelier one. Chosen and rejected: change in "
            "log-likelihood, in nats",
        )
    ]


def _counted(found: HeldOut) -> str:
    counted = f"{figures.count(found.num_pairs)} pairs of {figures.count(found.num_prompts)} prompts"
    counted += f", beta {found.beta:g}" if found.beta is not None else ""
    if found.num_dropped:
        counted += f", {figures.count(found.num_dropped)} more do not fit into max_length"
    if found.overlap and found.overlap.near:
        counted += f", {figures.count(found.overlap.near)} of which nearly ask what training asks"
    return counted


def _cells(found: HeldOut) -> tuple[Cell, ...]:
    chosen, rejected = found.chosen, found.rejected
    return (
        rate(found.reward_accuracy),
        _nats(found.margin),
        rate(found.likelihood_accuracy),
        *(_nats(change.answer if change else None) for change in (chosen, rejected)),
        *(_nats(change.token if change else None) for change in (chosen, rejected)),
    )


def _nats(found: Rate | None) -> Cell:
    if found is None:
        return Cell(figures.ABSENT)
    return Cell(
        figures.decimal(found.value, digits=3), figures.interval(found.low, found.high, digits=3), found.value
    )
