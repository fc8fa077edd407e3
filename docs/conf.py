"""Settings of the documents as a site: `make site` builds it from the pages as they stand in the repository.

The source folder is the repository's root, so a link between two pages is the same on the site and in the repository.
"""

import os
import re
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # autodoc imports torch

ROOT = Path(__file__).resolve().parent.parent
project = "allo"
copyright = "The allo developers, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "benchmarks/*.md", "experiments/*.md"]
# Folders that hold no page; the search for pages follows links, so it would read all of .venv.
exclude_patterns = [".*", "build", "dist", "mutants", "runs", "src", "tests"]
html_theme = "furo"
html_title = "allo"
html_show_sourcelink = False
myst_heading_anchors = 4
default_role = "code"  # docstrings write code in single backticks
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80

# Each page's list of the pages below it: (heading, pages), a page with another title as `TITLE <PAGE>`. The first five are a newcomer's way.
NAVIGATION = {
    "README": [
        (
            None,
            ["Start <docs/start>", "Your data <docs/data>", "docs/settings", "docs/report", "docs/method"],
        ),
        (
            "Reference",
            [
                *("docs/runs", "docs/checking", "docs/diagnosis", "docs/models", "docs/sampling"),
                *("docs/judging", "docs/evaluating", "docs/masks-and-deltas", "docs/library"),
                *(
                    "docs/migrating",
                    "docs/extending",
                    "docs/rewriter",
                    "docs/performance",
                    "docs/scaling",
                    "docs/api",
                ),
            ],
        ),
        ("Results", ["docs/what-helps", "benchmarks/RESULTS"]),
        (
            "Project",
            [
                *("ARCHITECTURE", "docs/invariants", "docs/decisions/README", "docs/experiments"),
                *(
                    "Experiments, to run <experiments/README>",
                    "benchmarks/README",
                    "CONTRIBUTING",
                    "CHANGELOG",
                    "SKILL",
                ),
            ],
        ),
    ],
    "docs/decisions/README": [
        (None, sorted(f"docs/decisions/{path.stem}" for path in ROOT.glob("docs/decisions/0*.md"))),
    ],
}


def add_navigation(app: Any, page: str, source: list[str]) -> None:
    """Add the navigation to a page's text, and let a link to a folder lead to its README.md."""

    def to_page(link: re.Match[str]) -> str:
        folder = ROOT.joinpath(page).parent / link[1]
        return f"]({link[1]}/README.md)" if (folder / "README.md").is_file() else link[0]

    source[0] = re.sub(r"\]\(([\w./-]+)\)", to_page, source[0])
    for heading, pages in NAVIGATION.get(page, []):
        options = ":hidden:\n" + (f":caption: {heading}\n" if heading else "")
        below = "\n".join(re.sub(r"([\w./-]+)(>?)$", r"/\1\2", each) for each in pages)
        source[0] += f"\n```{{toctree}}\n{options}\n{below}\n```\n"


def mark_up(app: Any, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    """Mark the code in a docstring, lines that are indented after an empty line, and link the pages that it names."""
    for number in range(len(lines) - 1, 0, -1):
        if (
            lines[number].startswith("    ")
            and not lines[number - 1]
            and (number == 1 or lines[number - 2][:1] not in ("", " "))
        ):
            lines[number:number] = [".. code-block:: python", ""]
    lines[:] = [re.sub(r"\b(?:docs/)?([\w-]+)\.md\b", r":doc:`\g<0> </docs/\1>`", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon
