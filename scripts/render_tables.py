"""The tables of the documents, written from the records in benchmarks/results.

A document marks a table's place with `<!-- table:NAME -->` and `<!-- /table:NAME -->`. A record is one JSON file (see
benchmarks/README.md). A table's records are concatenated in the order of their file names. The table `NAME-headline`
shows at most five columns of `NAME-short`, or of NAME. The table `targets` is computed from all others (targets.py). Tables whose
name begins with `published-` hold a paper's figures, from benchmarks/published. A record with p or intervals of another rule
than `allo.stats.statistics.RULE`, or of none that it names, is refused. `<!-- plot:NAME -->` shows
docs/plots/NAME.svg. `--check` writes nothing and exits with 1 if a document is not up to date.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import targets
from allo.stats.statistics import RULE

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "benchmarks/*.md", "docs/*.md")
PLACE = re.compile(
    r"(?P<open><!-- table:(?P<name>[\w-]+) -->\n).*?(?P<close><!-- /table:(?P=name) -->)", re.DOTALL
)
PLOT = re.compile(
    r"(?P<open><!-- plot:(?P<name>[\w-]+) -->\n).*?(?P<close><!-- /plot:(?P=name) -->)", re.DOTALL
)
KEYS = {"schema", "table", "date", "commit", "dirty", "machine", "command", "columns", "rows"}
OPTIONAL_KEYS = {"statistics"}  # the rule of a comparison's p and intervals
PUBLISHED_KEYS = {"schema", "table", "source", "note", "columns", "rows"}
PUBLISHED = "published-"
HEADLINE = "-headline"
P = re.compile(r"(^|, )p( over problems)?$")
CROSSED = re.compile(r", (sampled|greedy|pass@\d+|less \w+)$")  # intervals over seeds and problems
EMPTY = "No result has been recorded yet.\n"
NOT_DRAWN = "No plot has been drawn yet.\n"


class BadRecordError(Exception):
    """A record that cannot become a table."""


def read_records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read all records by table, in the order of their file names."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        check_record(record, name=path.name)
        tables.setdefault(record["table"], []).append(record)
    return tables


def read_published(folder: Path) -> dict[str, dict[str, Any]]:
    """Read papers' tables by name: reported by others, never mixed with our measurements."""
    tables: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if set(found) != PUBLISHED_KEYS or found["schema"] != 1:
            raise BadRecordError(
                f"{path.name}: a published table has exactly the keys {sorted(PUBLISHED_KEYS)}"
            )
        if not found["table"].startswith(PUBLISHED):
            raise BadRecordError(f"{path.name}: the name of a published table begins with {PUBLISHED!r}")
        check_rows(found, name=path.name)
        tables[found["table"]] = found
    return tables


def check_record(record: dict[str, Any], *, name: str) -> None:
    if set(record) - OPTIONAL_KEYS != KEYS or record["schema"] != 1:
        raise BadRecordError(
            f"{name}: a record of schema 1 has the keys {sorted(KEYS)}, and may have {sorted(OPTIONAL_KEYS)}"
        )
    if record["dirty"]:
        raise BadRecordError(f"{name}: made from uncommitted changes; commit, then run the experiment again")
    if record["table"].startswith(PUBLISHED):
        raise BadRecordError(
            f"{name}: a measurement is not called {PUBLISHED}…; that is for a paper's figures"
        )
    check_rows(record, name=name)
    if old := outdated(record):
        raise BadRecordError(
            f"{name}: {', '.join(old)} follow an earlier rule, or none that is named. Record the comparison again from "
            "its trials, or run it again"
        )


def outdated(record: dict[str, Any]) -> list[str]:
    """Return the columns whose p or intervals are not by today's rule."""
    if record.get("statistics") == RULE:
        return []
    compared = "method" in record["columns"]
    return [
        column
        for column, *cells in zip(record["columns"], *record["rows"], strict=True)
        if P.search(column)
        or (compared and CROSSED.search(column) and any(isinstance(cell, dict) for cell in cells))
    ]


def check_rows(record: dict[str, Any], *, name: str) -> None:
    if any(len(row) != len(record["columns"]) for row in record["rows"]):
        raise BadRecordError(f"{name}: each row needs {len(record['columns'])} cells")


def render_cell(cell: object) -> str:
    """Render a cell: text, a number, null, or {"value", "low", "high"}, a figure with its interval."""
    match cell:
        case {"value": value, "low": low, "high": high}:
            return f"{render_cell(value)} [{render_cell(low)}, {render_cell(high)}]"
        case None:
            return "–"
        case bool():
            return "yes" if cell else "no"
        case float():
            return f"{cell:.3g}"
        case int():
            return f"{cell:,}"
        case _:
            return str(cell).replace("|", "\\|")


def render(records: list[dict[str, Any]]) -> str:
    """Render records with the same columns as one Markdown table, followed by their origin."""
    columns = records[0]["columns"]
    if any(record["columns"] != columns for record in records):
        raise BadRecordError(f"table {records[0]['table']!r}: its records differ in their columns")
    lines = [*grid(columns, [row for record in records for row in record["rows"]]), ""]
    sources = [f"`{r['command']}`, {r['date']}, {commits(r['commit'])}, {r['machine']}" for r in records]
    lines += [f"<sub>{source}</sub>  " for source in dict.fromkeys(sources)]
    return "\n".join(lines) + "\n"


def headline(record: dict[str, Any]) -> dict[str, Any]:
    """Return a short record's view of at most five columns: the method, sampled accuracy first and last, and KL."""
    names = record["columns"]
    sampled = [name for name in names if name.endswith(", sampled")]
    wanted = {"method", "sees", sampled[0], sampled[-1], "KL to start, nats a token"}
    kept = [place for place, name in enumerate(names) if name in wanted]
    rows = [[row[place] for place in kept] for row in record["rows"]]
    return record | {"columns": [names[place] for place in kept], "rows": rows}


def render_published(table: dict[str, Any]) -> str:
    """Render a paper's table as printed, with its source."""
    figures = [cell for row in table["rows"] for cell in row if not isinstance(cell, str)]
    digits = max(len(str(figure).partition(".")[2]) for figure in figures)

    def printed(cell: str | float) -> str:
        return cell if isinstance(cell, str) else f"{cell:.{digits}f}"

    lines = [*grid(table["columns"], table["rows"], render_cell=printed), ""]
    return (
        "\n".join(lines) + f"\n<sub>Published, not measured here: {table['source']}. {table['note']}</sub>\n"
    )


def commits(hashes: str) -> str:
    """Shorten one commit, or several separated by spaces."""
    short = [one[:7] for one in hashes.split()]
    return f"{'commit' if len(short) == 1 else 'commits'} {', '.join(short)}"


def grid(
    columns: list[str], rows: list[list[Any]], *, render_cell: Callable[[Any], str] = render_cell
) -> list[str]:
    """Return a Markdown table's lines; columns of figures are right-aligned."""
    rules = ["---" if isinstance(cell, str) else "---:" for cell in rows[0]]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(rules)} |"]
    return lines + [f"| {' | '.join(map(render_cell, row))} |" for row in rows]


def fill(document: str, tables: dict[str, list[dict[str, Any]]], published: dict[str, dict[str, Any]]) -> str:
    """Return the document with each marked table filled again."""

    def table(place: re.Match[str]) -> str:
        name = place["name"]
        if name == "targets":
            content = "\n".join(grid(*targets.rows(tables))) + "\n"
        elif name in published:
            content = render_published(published[name])
        elif name.endswith(HEADLINE):
            whole = name.removesuffix(HEADLINE)
            records = tables.get(f"{whole}-short", tables.get(whole, []))
            content = render(list(map(headline, records))) if records else EMPTY
        else:
            content = render(tables[name]) if name in tables else EMPTY
        return place["open"] + content + place["close"]

    return PLACE.sub(table, document)


def show_plots(document: str, plots: Path, *, beside: Path) -> str:
    """Return the document, located in the folder `beside`, with each marked plot that was drawn."""

    def plot(place: re.Match[str]) -> str:
        path = plots / f"{place['name']}.svg"
        link = Path(os.path.relpath(path, beside)).as_posix()
        return (
            place["open"]
            + (f"![{place['name']}]({link})\n" if path.is_file() else NOT_DRAWN)
            + place["close"]
        )

    return PLOT.sub(plot, document)


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Write the documents' tables from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is stale")
    options = parser.parse_args(arguments)
    try:
        tables = read_records(root / "benchmarks" / "results")
        published = read_published(root / "benchmarks" / "published")
        texts = {
            path: path.read_text(encoding="utf-8") for glob in DOCUMENTS for path in sorted(root.glob(glob))
        }
        filled = {
            path: show_plots(fill(text, tables, published), root / "docs" / "plots", beside=path.parent)
            for path, text in texts.items()
        }
        stale = {path: new for path, new in filled.items() if new != texts[path]}
    except BadRecordError as error:
        print(error, file=sys.stderr)
        return 2
    for path, new in stale.items():
        print(f"{'stale' if options.check else 'written'}: {path.relative_to(root)}")
        if not options.check:
            path.write_text(new, encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
