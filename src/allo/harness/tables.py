"""Harness results for readers: one table per task."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from allo.console import cell
from allo.files.evaluation import HarnessModel
from allo.report.harness import harness_tables

_WIDTH = 110  # even on a narrower terminal, so that its headings stay readable


def show(models: Iterable[HarnessModel]) -> None:
    """Print the tables to standard output, each with the provenance of its figures."""
    console = Console(highlight=False, emoji=False, width=max(Console().width, _WIDTH))
    for table in harness_tables(models):
        shown = Table(title=cell(table.title), box=SIMPLE_HEAD)
        for column in table.columns:
            number = column != table.columns[0]
            shown.add_column(
                column, justify="right" if number else "left", no_wrap=column == "Value", overflow="fold"
            )
        for row in table.rows:
            shown.add_row(*(cell(f"{each.text} {each.note}".strip()) for each in row))
        console.print(shown)
        console.print(cell(table.remark), soft_wrap=True)
