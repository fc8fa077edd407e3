"""The report's table of win rates, for runs whose answers a judge compared (`allo winrate judge`)."""

from collections.abc import Sequence

from allo.report import figures
from allo.report.run_view import Judged, RunView
from allo.report.tables import Cell, Table, rate

COLUMNS = (
    *("Model", "Set", "Against", "Judge"),
    *("Win rate", "At equal length", "First is better", "Orders agree", "Prompts"),
)
REMARK = (
    "A tie is half a win; intervals over prompts. At equal length: what the judge would prefer, were both answers "
    "equally long. First is better: how much more often the judge names the first answer shown than the second. "
    "Prompts: those read in both orders"
)


def win_rate_tables(runs: Sequence[RunView]) -> list[Table]:
    """Return one table with a row per judged model, set, baseline and judge; none if no judge was asked.

    Records of answers that the run has since replaced are named, but not shown.
    """
    several = len(runs) > 1
    rows = [_row(run, judged, several=several) for run in runs for judged in run.judged]
    before = [f"{run.name}/{name}" if several else name for run in runs for name in run.judged_before]
    remarks = [REMARK] if rows else []
    if before:
        remarks.append(
            f"Left out, as the run's answers are others now: {', '.join(map(figures.printable, before))}. "
            "Ask the judge again"
        )
    return [Table("Win rates by a judge", COLUMNS, tuple(rows), ". ".join(remarks))] if remarks else []


def _row(run: RunView, judged: Judged, *, several: bool) -> tuple[Cell, ...]:
    found, counts = judged.summary, judged.counts
    names = (judged.model.name, judged.set, judged.baseline.name, judged.judge.model)
    model, *others = map(figures.name, names)
    unread = sum(counts.unread.values())
    return (
        Cell(f"{model} ({figures.name(run.name)})" if several else model),
        *map(Cell, others),
        rate(found.win_rate),
        rate(found.length_controlled),
        Cell(figures.points(found.position_bias), value=found.position_bias),
        Cell(figures.percent(found.agreement), value=found.agreement),
        Cell(
            f"{figures.count(found.num_prompts)} of {figures.count(counts.prompts)}",
            f"{figures.count(unread)} replies without a verdict" if unread else "",
        ),
    )
