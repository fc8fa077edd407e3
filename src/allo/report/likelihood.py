"""The report's table of changes in likelihood: answers on held-out rows, with intervals, and those trained on."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from allo.files.evaluation import Change, ModelResult, Rate
from allo.report import figures
from allo.report.evidence import Evidence, at_end
from allo.report.run_view import RunView
from allo.report.tables import Cell, Table, measured

COLUMNS = ("Answers", "Before", "After", "Change", "Change a token", "Times as likely")
MOST = 1000
"""The largest factor that is shown as a number, and the inverse of the smallest."""
HELD_OUT = "Held out: before is the starting model, and intervals are over prompts"
TRAINING = (
    "In training: the change at the last logged steps, of answers that are learned from; before is their mean under "
    "the model that improving began with, which forgetting may have changed, over all steps"
)


def likelihood_tables(runs: Sequence[RunView], *, training: bool = True) -> list[Table]:
    """Return one table with a row per kind of answers, or none; `training` also shows those trained on."""
    rows, remarks = [], ["Mean log-likelihood of a whole answer, in nats"]
    for run in runs:
        held_out, trained = list(_held_out(run)), list(_training(run)) if training else []
        remarks += [HELD_OUT] if held_out else []
        remarks += [TRAINING] if trained else []
        origin = f" ({figures.name(run.name)})" if len(runs) > 1 else ""
        rows += [(Cell(row[0].text + origin), *row[1:]) for row in held_out + trained]
    if not rows:
        return []
    kept = [
        place
        for place in range(len(COLUMNS))
        if not place or any(row[place].value is not None for row in rows)
    ]
    columns = tuple(COLUMNS[place] for place in kept)
    shown = tuple(tuple(row[place] for place in kept) for row in rows)
    return [Table("Likelihood changes", columns, shown, ". ".join(dict.fromkeys(remarks)))]


def _held_out(run: RunView) -> Iterator[tuple[Cell, ...]]:
    models = [model for role, model in run.evaluation.models.items() if role != "start" and _sides(model)]
    for model in models:
        known = {side: level for side, level, _ in _sides(run.before)} if run.before else {}
        for side, level, change in _sides(model):
            label = f"{side}, held out"
            label += f", {figures.name(model.label)}" if len(models) > 1 else ""
            yield (
                Cell(label),
                *(measured(each, digits=2) for each in (known.get(side), level)),
                *(
                    measured(each, digits=3)
                    for each in ((change.answer, change.token) if change else (None, None))
                ),
                _times(change.answer.value) if change else Cell(figures.ABSENT),
            )


def _sides(model: ModelResult) -> list[tuple[str, Rate | None, Change | None]]:
    """Return each kind of held-out answers with their log-likelihood and its change."""
    found: list[tuple[str, Rate | None, Change | None]] = []
    if pairs := model.held_out:
        found += [
            ("chosen", pairs.chosen_logp, pairs.chosen),
            ("rejected", pairs.rejected_logp, pairs.rejected),
        ]
    if labelled := model.feedback:
        found += [("good", labelled.good_logp, labelled.good), ("bad", labelled.bad_logp, labelled.bad)]
    return [side for side in found if side[1] or side[2]]


def _training(run: RunView) -> Iterator[tuple[Cell, ...]]:
    for stage, steps in run.curves.items():
        if stage.rpartition("/")[2] != "improve":
            continue
        evidence = Evidence("improve", steps, run.settings)
        for side in ("chosen", "rejected"):
            changes, logps = evidence.changes(f"rewards/{side}"), evidence.values(f"logps/{side}")
            if not changes:
                continue
            change, before = at_end(changes), None
            if len(logps) == len(changes):
                before = fmean(logp - moved for logp, moved in zip(logps, changes, strict=True))
            yield (
                Cell(f"{side}, in training" + (f", {figures.name(stage)}" if stage != "improve" else "")),
                *(
                    Cell(figures.decimal(each, digits=2), value=each)
                    for each in (before, None if before is None else before + change)
                ),
                Cell(figures.decimal(change, digits=3), value=change),
                Cell(figures.ABSENT),
                _times(change),
            )


def _times(change: float) -> Cell:
    times = math.exp(min(change, 700.0))
    words = (
        f"over {MOST:,}"
        if times > MOST
        else f"below {1 / MOST}"
        if times < 1 / MOST
        else figures.significant(times)
    )
    return Cell(words, value=times)
