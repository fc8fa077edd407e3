"""Results for people: a table a task."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from allo.report.harness import harness_tables
from allo.report.run_view import HarnessModel

_WIDTH = 110  # also where a terminal is narrower: its headings say what a number is


def show(models: Iterable[HarnessModel]) -> None:
    """Print the tables to standard output, each with what made its figures."""
    console = Console(highlight=False, emoji=False)
    for table in harness_tables(models):
        shown = Table(title=Text(table.title), box=SIMPLE_HEAD)
        for column in table.columns:
            shown.add_column(column, no_wrap=True, justify="left" if column == table.columns[0] else "right")
        for row in table.rows:
            shown.add_row(*(Text(f"{cell.text} {cell.note}".strip()) for cell in row))
        console.print(shown, width=max(console.width, _WIDTH), crop=False)
        console.print(table.remark, markup=False, soft_wrap=True)
