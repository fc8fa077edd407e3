"""The mutants of one file: made by mutmut, described, drawn, and held against the file's tests."""

import argparse
import json
import random
import shutil
import textwrap
from collections import Counter
from math import ceil
from pathlib import Path

from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import get_mutant_runner

from benchmarks.mutants.mutant import KILLED, NOT_DRAWN, TEXT, Mutant, described, keyed


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


def of_file(
    file: str, tests: list[str], earlier: list[Mutant], options: argparse.Namespace, part: Path
) -> None:
    """Make, draw and run the mutants of a file, and write them to `part`."""
    config().only_mutate, config().pytest_add_cli_args_test_selection = [file], tests
    mutants = make_mutants(file)
    candidates = [mutant for mutant in mutants if mutant["status"] == NOT_DRAWN]
    if options.again:
        known = {key: mutant["status"] for key, mutant in keyed(earlier)}
        for key, mutant in keyed(mutants):
            mutant["status"] = known.get(key, mutant["status"])
        drawn = [mutant for mutant in mutants if mutant["status"] not in (KILLED, TEXT, NOT_DRAWN)]
    else:
        drawn = random.Random(options.seed).sample(candidates, min(options.draw, len(candidates)))
    if drawn:
        run(drawn, max_children=options.max_children)
    part.write_text(json.dumps(mutants), encoding="utf-8")
