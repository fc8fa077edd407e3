"""Mutants of the files whose faults would pass unseen, and which of them no test notices.

    python -m benchmarks.mutants.run --draw 40                          # 40 mutants of each file, drawn by --seed
    python -m benchmarks.mutants.run                                    # every mutant: hours
    python -m benchmarks.mutants.run --again runs/mutants/before.json   # those that were not killed, once more

mutmut makes the mutants and holds each against the tests that call its function, fastest first. `[tool.mutmut.tests]` in
pyproject.toml names each file's tests. A mutant that changes only the wording of a message (a string with a space in it)
is counted but not run: tests hold what a message names, not how it is worded.
"""

import argparse
import datetime
import json
import multiprocessing
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]  # benchmarks.record would import allo as it is, without mutants


def commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ":!benchmarks/results", ":!docs/plots")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


def portable(argument: str) -> str:
    """Return an argument without this machine's folders, since results are read elsewhere."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="some of the files; all of [tool.mutmut.tests] otherwise")
    parser.add_argument("--draw", type=int, default=sys.maxsize, help="mutants to run of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="an earlier result: run what it does not have as killed")
    parser.add_argument("--max-children", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/mutants/mutants.json"))
    options = parser.parse_args()
    from benchmarks.mutants.one_file import of_file  # needs the extra `mutants`

    tests = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]["tests"]
    earlier = json.loads(options.again.read_text(encoding="utf-8"))["files"] if options.again else {}
    head = {
        "date": datetime.date.today().isoformat(),
        **commit(),
        "command": shlex.join(["python", "-m", "benchmarks.mutants.run", *map(portable, sys.argv[1:])]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Mutant]] = {}
    for file in options.files or list(tests):
        print(file, flush=True)
        part = options.out.with_name(f"{options.out.stem}.{file.replace('/', '.')}.part")
        # A process of its own, because mutmut keeps its state in the process.
        arguments = (file, tests[file], earlier.get(file, []), options, part)
        child = multiprocessing.get_context("spawn").Process(target=of_file, args=arguments)
        child.start()
        child.join()
        if child.exitcode:
            print(f"{file}: stopped with exit status {child.exitcode}, left out", file=sys.stderr)
            continue
        found[file] = json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
        options.out.write_text(
            json.dumps(head | {"files": found}, indent=1, ensure_ascii=False), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
