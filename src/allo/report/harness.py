"""A harness's results in the report's tables."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from allo.files.evaluation import HarnessModel, HarnessResult
from allo.report import figures
from allo.report.run_view import RunView
from allo.report.tables import Cell, Table

COLUMNS = ("Model", "Metric", "Value", "Problems", "Examples shown", "Chat template")


def harness_tables(models: Iterable[HarnessModel]) -> list[Table]:
    """Return one table per task: a row per model and metric, with the standard error and the measurement's settings."""
    known = list(models)
    tasks = dict.fromkeys(result.task for model in known for result in model.results)
    return [_table(task, known) for task in tasks]


def tables_of_runs(runs: Sequence[RunView]) -> list[Table]:
    """Return the tables of every run's models; with several runs, a label carries its run's name."""
    return harness_tables(
        replace(model, label=f"{model.label} ({run.name})") if len(runs) > 1 else model
        for run in runs
        for model in run.evaluation.harness.values()
    )


def _table(task: str, models: list[HarnessModel]) -> Table:
    measured = [(model, result) for model in models for result in model.results if result.task == task]
    made = dict.fromkeys(_made(result) for _, result in measured)
    return Table(
        title=figures.name(task),
        columns=COLUMNS,
        rows=tuple(row for model, result in measured for row in _rows(model, result)),
        remark="; ".join(made),
    )


def _rows(model: HarnessModel, result: HarnessResult) -> Iterator[tuple[Cell, ...]]:
    for metric in result.metrics:
        filtered = "" if metric.filter == "none" else metric.filter
        error = "" if metric.stderr is None else f"± {figures.decimal(metric.stderr, digits=4)}"
        yield (
            Cell(figures.name(model.label), figures.printable(result.dtype or "")),
            Cell(figures.name(metric.metric), figures.printable(filtered)),
            Cell(figures.decimal(metric.value, digits=4), error, metric.value),
            _problems(result),
            Cell(figures.count(result.num_fewshot), value=result.num_fewshot),
            Cell("yes" if result.chat_template else "no"),
        )


def _problems(result: HarnessResult) -> Cell:
    if result.num_problems is None:
        return Cell(figures.ABSENT)
    limited = result.limit is not None and result.num_all is not None and result.limit < result.num_all
    note = f"the first of {figures.count(result.num_all)}" if limited else ""
    return Cell(figures.count(result.num_problems), note, result.num_problems)


def _made(result: HarnessResult) -> str:
    """Return the versions of task and harness, and the commit of allo that ran it."""
    commit = "an unknown commit" if result.commit is None else f"commit {result.commit[:10]}"
    changes = " with uncommitted changes" if result.dirty else ""
    version = "" if result.version is None else f"version {result.version}, "
    return figures.printable(f"{version}{result.harness} {result.harness_version}, {commit}{changes}")
