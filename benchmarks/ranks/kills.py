"""Recipes whose ranks are killed, stopped or made to raise at random: does each end clearly, and does a restart end the same?

    OMP_NUM_THREADS=1 python -m benchmarks.ranks.kills --times 30 --work FOLDER

Each accident hits a random rank of 2 or 3 at a random moment of the tiny recipe of tests/tiny_run.py. A clear end is one message, a
status other than 0, and at most a minute. The restart has another number of ranks; its untrained files must have the same bytes as a
run left alone, and its losses must be equal to 1e-6. `--work` keeps what is done: the same command goes on.
"""

import argparse
import json
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ranks.forked import Hurt, Server, Start, serving

LIMIT = 60  # seconds from the accident to the end
LOSS = 1e-6
HOWS = ("kill", "stop", "raise")
SMALL = (
    "sft=null",
    "data.limit=8",
    *(f"{stage}.training.save_steps=1" for stage in ("locate", "forget", "improve")),
    "evaluate.sets={test: {task: planted_flaws, split: test, limit: 4}}",
    "evaluate.max_new_tokens=24",
    "evaluate.kl.limit=2",
    "sample.batch_size=1",
    "score.batch_size=2",
)
WORDS = {"kill": "was ended by SIGKILL", "stop": "has not answered", "raise": "PlantedError: planted"}
Row = dict[str, Any]


def results(run: Path) -> Row:
    """Return what must be equal: files that nothing trained has touched, and the losses."""
    untrained = ("01-completions.jsonl", "02-verdicts.jsonl", "03-pairs.jsonl", "03-wrong.jsonl")
    losses = [
        [row["loss"] for row in map(json.loads, (run / name / "metrics.jsonl").read_text().splitlines())]
        for name in ("04-warmup", "06-forget", "07-improve")
    ]
    return {"files": [(run / name).read_text() for name in untrained], "losses": losses}


def are_equal(one: Row, other: Row) -> bool:
    pairs = [
        pair
        for here, there in zip(one["losses"], other["losses"], strict=True)
        for pair in zip(here, there, strict=True)
    ]
    return bool(one["files"] == other["files"]) and all(abs(here - there) <= LOSS for here, there in pairs)


class Accidents:
    """Runs below a folder, and the one that was left alone."""

    def __init__(self, server: Server, work: Path) -> None:
        # The tiny recipe is a test's.
        sys.path.append(str(Path(__file__).parents[2] / "tests"))
        from tiny_run import arguments

        self._server, self._work, self._arguments = server, work, arguments
        self._out, self._log = work / "run", work / "log"
        self._clear()
        status, self.seconds = self._start(2, None)
        assert status == 0, self._log.read_text()
        self._expected = results(self._out / "tiny")

    def _clear(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)

    def _start(self, num_ranks: int, hurt: Hurt | None) -> tuple[int, float]:
        start = Start(self._arguments("run", self._out, *SMALL), str(self._log), num_ranks, hurt)
        return self._server.run(start)

    def one(self, number: int, how: str) -> Row:
        """Return the outcome of one accident."""
        draw = random.Random(number)
        num_ranks, others = draw.choice([(2, 3), (3, 2), (2, 1)])
        hurt = Hurt(draw.randrange(num_ranks), how, draw.uniform(0.05, 0.7) * self.seconds)
        self._clear()
        status, seconds = self._start(num_ranks, hurt)
        log = self._log.read_text()
        stages = re.findall(r"^(\S+) +stage \d+ of", log, re.MULTILINE)
        row = {
            "number": number,
            "how": how,
            "rank": hurt.rank,
            "ranks": num_ranks,
            "after": round(hurt.after, 1),
        }
        row |= {"stage": stages[-1] if stages else "start", "ended in": round(seconds - hurt.after, 1)}
        if status == 0 and WORDS[how] not in log:
            return row | {"clear": None, "equal": None}  # it had ended before
        clear = status != 0 and row["ended in"] <= LIMIT and log.count(WORDS[how]) == 1
        again, _ = self._start(others, None)
        equal = again == 0 and are_equal(self._expected, results(self._out / "tiny"))
        if not (clear and equal):
            (self._work / f"failed-{number}.log").write_text(f"{log}\n--- again\n{self._log.read_text()}")
        return row | {"clear": clear, "equal": equal}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30, help="accidents that hit a run at work")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs and the outcomes")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "outcomes.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    with serving() as server:
        accidents = Accidents(server, options.work)
        while sum(row["clear"] is not None for row in rows) < options.times:
            rows.append(accidents.one(len(rows), HOWS[len(rows) % len(HOWS)]))
            print(json.dumps(rows[-1]), flush=True)
            with kept.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    hit = [row for row in rows if row["clear"] is not None]
    print("stages:", dict(Counter(row["stage"] for row in hit)))
    for how in HOWS:
        own = [row for row in hit if row["how"] == how]
        slowest = max((row["ended in"] for row in own), default=0)
        clear, equal = (sum(row[key] for row in own) for key in ("clear", "equal"))
        print(
            f"{how:<6} {len(own)} accidents, {clear} clear ends (slowest {slowest} s), {equal} equal results"
        )


if __name__ == "__main__":
    main()
