"""One record of the table `mutants` from what run.py wrote; `make tables` shows it in docs/experiments.md.

    python -m benchmarks.mutants.record after runs/mutants/after.json --out mutants-2-after.json

A survivor counts as equivalent if equivalent.json lists it: it does the same, or no test could tell. The list gives
each one's kind, and says why of each kind. The share of all files weighs each file by its number of mutants. `--left` prints the survivors that are not in the list.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.mutants.mutant import KILLED, NOT_DRAWN, TEXT, Mutant
from benchmarks.record import RESULTS, machine

SHARE = "killed of the others"
EQUIVALENT = Path(__file__).with_name("equivalent.json")


def equivalents() -> set[tuple[str, ...]]:
    listed = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    assert {one["kind"] for one in listed["mutants"]} <= listed["kinds"].keys()
    return {(one["file"], one["was"], one["became"]) for one in listed["mutants"]}


def row(tests: str, file: str, mutants: list[Mutant], equivalent: int) -> dict[str, Any]:
    """Return a file's row; shares are of the mutants that were run and are not equivalent.

    One that timed out does not count as killed: a busy machine looks the same.
    """
    found = Counter(mutant["status"] for mutant in mutants)
    run = len(mutants) - found[TEXT] - found[NOT_DRAWN]
    return {
        "tests": tests,
        "file": file.removeprefix("src/allo/"),
        "mutants": len(mutants),
        "message text": found[TEXT],
        "run": run,
        "killed": found[KILLED],
        "timed out": found["timeout"],
        "no test": found["no tests"],
        "equivalent": equivalent,
        SHARE: round(found[KILLED] / (run - equivalent), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tests", help="what the rows say of the tests: before, after")
    parser.add_argument("results", nargs="+", type=Path, help="files that run.py wrote")
    parser.add_argument("--left", action="store_true", help="print the survivors that are not equivalent")
    parser.add_argument("--out", required=True, help="the record's name in benchmarks/results")
    options = parser.parse_args()
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    files = {file: mutants for part in parts for file, mutants in part["files"].items()}
    known = equivalents()
    left = {
        file: [one for one in mutants if one["status"] not in (KILLED, TEXT, NOT_DRAWN)]
        for file, mutants in files.items()
    }
    same = {
        file: sum((file, one["was"], one["became"]) in known for one in some) for file, some in left.items()
    }
    rows = [row(options.tests, file, mutants, same[file]) for file, mutants in files.items()]
    every = [mutant for mutants in files.values() for mutant in mutants]
    sizes = [one["mutants"] - one["message text"] for one in rows]
    share = sum(size * one[SHARE] for size, one in zip(sizes, rows, strict=True)) / sum(sizes)
    rows.append(row(options.tests, "all, by size", every, sum(same.values())) | {SHARE: round(share, 3)})
    record = {
        "schema": 1,
        "table": "mutants",
        "date": max(part["date"] for part in parts),
        "commit": " ".join(dict.fromkeys(part["commit"] for part in parts)),
        "dirty": any(part["dirty"] for part in parts),
        "machine": machine("cpu"),
        "command": "; ".join(dict.fromkeys(part["command"] for part in parts)),
        "columns": list(rows[0]),
        "rows": [list(row.values()) for row in rows],
    }
    (RESULTS / options.out).write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for file, some in left.items() if options.left else ():
        for one in some:
            if (file, one["was"], one["became"]) not in known:
                print(file, one["function"], one["status"], "-", one["was"], "+", one["became"], sep="\n  ")


if __name__ == "__main__":
    main()
