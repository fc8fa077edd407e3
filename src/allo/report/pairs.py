"""Results on held-out pairs and labelled completions in the report's tables."""

from collections.abc import Sequence

from allo.files.evaluation import HeldOut, HeldOutFeedback
from allo.report import figures
from allo.report.tables import Cell, Model, Table, measured, rate

COLUMNS = ("Reward accuracy", "Margin", "Likelihood accuracy")
FEEDBACK_COLUMNS = ("Reward AUC", "Likelihood AUC")


def held_out_tables(rows: Sequence[Model]) -> list[Table]:
    """Return the tables of held-out pairs and labelled completions, with one row per model; none if none was measured."""
    return _of_pairs(rows) + _of_feedback(rows)


def _of_feedback(rows: Sequence[Model]) -> list[Table]:
    known = [(row, row.result.feedback) for row in rows if row.result.feedback]
    if not known:
        return []
    counts = dict.fromkeys(_labels_counted(found) for _, found in known)
    return [
        Table(
            title="Held-out feedback",
            columns=("Model", *FEEDBACK_COLUMNS),
            rows=tuple(
                (
                    Cell(row.label),
                    *(rate(each) for each in (found.reward_auc, found.likelihood_auc)),
                )
                for row, found in known
            ),
            remark=f"{'; '.join(counts)}. Reward AUC is the chance that a good completion has a higher reward than a bad "
            "one: beta times its log-ratio to the start; at the start every reward is 0. Likelihood AUC is that of a "
            "higher mean log-prob of a token",
        )
    ]


def _labels_counted(found: HeldOutFeedback) -> str:
    counted = f"{figures.count(found.num_good)} good and {figures.count(found.num_bad)} bad completions of "
    return counted + _details(found, found.num_prompts)


def _of_pairs(rows: Sequence[Model]) -> list[Table]:
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
            "0. It is right by likelihood if the chosen answer is the likelier one",
        )
    ]


def _counted(found: HeldOut) -> str:
    return f"{figures.count(found.num_pairs)} pairs of {_details(found, found.num_prompts)}"


def _details(found: HeldOut | HeldOutFeedback, num_prompts: int) -> str:
    counted = f"{figures.count(num_prompts)} prompts"
    counted += f", beta {found.beta:g}" if found.beta is not None else ""
    if found.num_dropped:
        counted += f", {figures.count(found.num_dropped)} more do not fit into max_length"
    if found.overlap and found.overlap.near:
        counted += f", {figures.count(found.overlap.near)} of which nearly ask what training asks"
    return counted


def _cells(found: HeldOut) -> tuple[Cell, ...]:
    return rate(found.reward_accuracy), measured(found.margin, digits=3), rate(found.likelihood_accuracy)
