"""The writing of a report on one or many runs: one HTML page and its Markdown tables."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allo.files.artifacts import RunFolder, write_atomic
from allo.recipe import Recipe
from allo.report.likelihood import likelihood_tables
from allo.report.page import DEFAULT_EXAMPLES, render
from allo.report.pairs import held_out_tables
from allo.report.read import view
from allo.report.story import headline
from allo.report.tables import models, result_tables


def write_report(
    folders: Sequence[Path], out: Path, *, title: str | None = None, num_examples: int = DEFAULT_EXAMPLES
) -> tuple[Path, Path]:
    """Read the runs, write `out`/report.html and `out`/report.md, and return their paths.

    Raises `UserError` if a run has no evaluation yet, or one of its files is malformed.
    """
    page, tables = render([view(folder) for folder in folders], title=title, num_examples=num_examples)
    out.mkdir(parents=True, exist_ok=True)
    html, markdown = out / "report.html", out / "report.md"
    write_atomic(html, page)
    write_atomic(markdown, tables)
    return html, markdown


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `report.html`, `report.md` and `model-card.md` of one run into its folder."""
    from allo.stages.card import write_card  # unlike a report, it needs the delta, and so torch

    write_report(
        [folder.path], folder.path, title=recipe.report.title, num_examples=recipe.report.num_examples
    )
    write_card(recipe, folder)
    return {}


def result_of_run(run: Path) -> str:
    """Return a finished run's result in one sentence."""
    return headline(view(run))


def tables_of_run(run: Path) -> Iterator[tuple[str, list[list[str]], str]]:
    """Yield the title, the lines and the remark of each table of a finished run's results.

    Models stand side by side, headed by names. The remark says how many rows were measured, and what the names mean.
    """
    seen = view(run)
    rows = models([seen])
    for table in result_tables(rows) + held_out_tables(rows) + likelihood_tables([seen], training=False):
        lines = [["", *(row[0].text for row in table.rows)]]
        for number, name in enumerate(table.columns[1:], start=1):
            cells = [row[number] for row in table.rows]
            if any(each.value is not None for each in cells):
                lines.append([name, *(f"{each.text} {each.note}".strip() for each in cells)])
        yield table.title, lines, table.remark
