"""Mutants of the files whose faults would pass unseen, and which of them no test notices.

    python benchmarks/mutants/run.py --draw 40                          # 40 mutants of each file, drawn by --seed
    python benchmarks/mutants/run.py                                    # every mutant: hours
    python benchmarks/mutants/run.py --again runs/mutants/before.json   # those that were not killed, once more

mutmut makes the mutants and holds each against the tests that call its function, fastest first. `[tool.mutmut.tests]` in
pyproject.toml names each file's tests. A mutant that changes only the wording of a message (a string with a space in it)
is counted but not run: tests hold what a message names, not how it is worded.
"""

import argparse
import datetime
import json
import multiprocessing
import random
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import get_mutant_runner

from mutant import KILLED, NOT_DRAWN, TEXT, Mutant, described, identity

ROOT = Path(__file__).resolve().parents[2]


def make_mutants(file: str) -> list[Mutant]:
    """Return the mutants of a file, written into a fresh copy of the sources below `mutants`."""
    shutil.rmtree("mutants", ignore_errors=True)
    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir()
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    result = mutmut.create_file_mutants(Path(file))
    if result.error:
        raise result.error
    data = SourceFileMutationData(path=file)
    data.load()
    spans = MutantLineSpans.load(file)
    assert spans is not None
    found = []
    for name in data.exit_code_by_key:
        mutated = name.rpartition(".")[2]
        original = f"{mutated.partition('__mutmut_')[0]}__mutmut_orig"
        own, changed = (
            textwrap.dedent(source).replace(function, "function", 1)
            for function in (original, mutated)
            for source in spans.read_function_sources([function])
        )
        found.append(described(name, own, changed))
    return found


def run(drawn: list[Mutant], *, max_children: int) -> None:
    """Set the status of each drawn mutant."""
    runner = get_mutant_runner(max_children)
    mutmut.run_stats_collection(runner)  # exits if a test fails without a mutant
    set_mutant_under_test("")
    seconds, by_name = state().duration_by_test, {mutant["name"]: mutant for mutant in drawn}

    def collect() -> None:
        result = runner.wait_for_result()
        by_name[result.mutant_name]["status"] = status_by_exit_code[result.exit_code]
        done = Counter(mutant["status"] for mutant in drawn)
        print(f"\r{dict(done)}", end="", flush=True)

    runner.startup()
    try:
        for name in by_name:
            tests = state().tests_by_mangled_function_name.get(mangled_name_from_mutant_name(name), set())
            expected = sum(seconds[test] for test in tests)
            limit = ceil((expected + config().timeout_constant) * config().timeout_multiplier * 2)
            while not runner.has_capacity():
                collect()
            runner.submit(name, sorted(tests, key=lambda test: (seconds[test], test)), limit, expected)
        runner.signal_work_complete()
        while runner.pending_count() > 0:
            collect()
    finally:
        runner.shutdown()
    print()


def of_file(file: str, tests: list[str], earlier: list[Mutant], options: argparse.Namespace) -> None:
    """Make, draw and run the mutants of a file, and write them to a part of the result."""
    config().only_mutate, config().pytest_add_cli_args_test_selection = [file], tests
    mutants = make_mutants(file)
    candidates = [mutant for mutant in mutants if mutant["status"] == NOT_DRAWN]
    if options.again:
        known = {identity(mutant): mutant["status"] for mutant in earlier}
        for mutant in mutants:
            mutant["status"] = known.get(identity(mutant), mutant["status"])
        drawn = [mutant for mutant in mutants if mutant["status"] not in (KILLED, TEXT, NOT_DRAWN)]
    else:
        drawn = random.Random(options.seed).sample(candidates, min(options.draw, len(candidates)))
    if drawn:
        run(drawn, max_children=options.max_children)
    part_of(options.out, file).write_text(json.dumps(mutants), encoding="utf-8")


def part_of(out: Path, file: str) -> Path:
    return out.with_name(f"{out.stem}.{file.replace('/', '.')}.part")


def commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ":!benchmarks/results", ":!docs/plots")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


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
    tests = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]["tests"]
    earlier = json.loads(options.again.read_text(encoding="utf-8"))["files"] if options.again else {}
    head = {
        "date": datetime.date.today().isoformat(),
        **commit(),
        "command": shlex.join(["python", "benchmarks/mutants/run.py", *sys.argv[1:]]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Mutant]] = {}
    for file in options.files or list(tests):
        print(file, flush=True)
        # A process of its own, because mutmut keeps its state in the process.
        arguments = (file, tests[file], earlier.get(file, []), options)
        child = multiprocessing.get_context("spawn").Process(target=of_file, args=arguments)
        child.start()
        child.join()
        if child.exitcode:
            print(f"{file}: stopped with exit status {child.exitcode}, left out", file=sys.stderr)
            continue
        part = part_of(options.out, file)
        found[file] = json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
        options.out.write_text(
            json.dumps(head | {"files": found}, indent=1, ensure_ascii=False), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
