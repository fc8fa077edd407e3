"""The p and intervals of comparisons that an earlier rule made: found in a record, and taken out of it.

    python scripts/old_p.py benchmarks/results/RECORD.json ...

A comparison's record names its rule under `statistics` (`allo.stats.statistics.RULE`). If that is not today's, its p and
its intervals over seeds and problems may not be shown. Record the comparison again if its trials were kept;
otherwise this script leaves the means. Intervals over seeds alone (KL, seconds) are Student's by every rule and stay.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from allo.files.artifacts import write_json
from allo.stats.statistics import RULE

P = re.compile(r"(^|, )p( over problems)?$")
CROSSED = re.compile(r", (sampled|greedy|pass@\d+|less \w+)$")
MEANS_ALONE = (
    "No p: recorded before today's rule for p and intervals (decision 0019), and its trials were not kept. "
    "Accuracies and their differences are means over seeds."
)

Json = dict[str, Any]


def crossed(record: Json, column: str) -> bool:
    """Return whether a column's intervals are over seeds and problems: accuracies of a table of methods."""
    return "method" in record["columns"] and bool(CROSSED.search(column))


def outdated(record: Json) -> list[str]:
    """Return the columns whose p or intervals are not by today's rule."""
    if record.get("statistics") == RULE:
        return []
    return [
        column
        for column, *cells in zip(record["columns"], *record["rows"], strict=True)
        if P.search(column) or (crossed(record, column) and any(isinstance(cell, dict) for cell in cells))
    ]


def without_old_p(record: Json) -> Json:
    """Return the record without p, and with the means alone where its intervals are not by today's rule."""
    old = outdated(record)
    kept = [place for place, column in enumerate(record["columns"]) if not P.search(column) or not old]
    columns = [record["columns"][place] for place in kept]
    rows = [
        [
            cell["value"] if column in old and isinstance(cell, dict) else cell
            for column, cell in zip(columns, (row[place] for place in kept), strict=True)
        ]
        for row in record["rows"]
    ]
    return record | {"columns": columns, "rows": rows}


def means_alone(record: Json) -> bool:
    """Return whether a comparison's table should say that it has no p."""
    compared = any(crossed(record, column) or column.startswith("KL less ") for column in record["columns"])
    return compared and record.get("statistics") != RULE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD")
    for path in parser.parse_args(arguments).records:
        record = json.loads(path.read_text(encoding="utf-8"))
        if old := outdated(record):
            write_json(path, without_old_p(record))
        print(f"{path.name}: {', '.join(old) or 'nothing'} of an earlier rule")
    return 0


if __name__ == "__main__":
    sys.exit(main())
