"""The writing of a report on one or many runs: one HTML page and its Markdown tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allo.files.artifacts import RunFolder, write_atomic
from allo.recipe import Recipe
from allo.report.page import DEFAULT_EXAMPLES, render
from allo.report.read import view
from allo.report.story import headline


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
