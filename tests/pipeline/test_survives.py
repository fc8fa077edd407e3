"""Killed at any moment, damaged in any file: a run that is started again ends as one that was left alone."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ranks import forked
from tiny_run import IN_BATCHES, arguments, contents

# The slow test has as many kills, and as many damaged files.
TIMES = int(os.environ.get("ALLO_SURVIVES", "100"))
SEED = int(os.environ.get("ALLO_SURVIVES_SEED", "0"))
SMALL = (
    *IN_BATCHES,
    "data.limit=8",
    "sft.sources=[{task: planted_flaws, limit: 8}]",
    "sft.training.num_train_epochs=2",
    "sft.training.save_steps=1",
    "score.threshold=0.9",
    "improve.training.num_train_epochs=2",
    "improve.training.save_steps=1",
    "forget.training.save_steps=1",
    "locate.training.save_steps=1",
    "evaluate.sets={test: {task: planted_flaws, split: test, limit: 4}}",
    "evaluate.kl.limit=2",
    "evaluate.max_new_tokens=24",
)
# Files of a half-done run, beside its finished ones.
UNFINISHED = ("checkpoint-*/*", "*.part", ".*.begun", ".hashes.json", "manifest.json", "start.json")


@dataclass(frozen=True)
class Server:
    """A process that runs `allo run` in forked children, always in the same folder."""

    forks: forked.Server
    out: Path

    @property
    def run(self) -> Path:
        return self.out / "tiny"

    @property
    def log(self) -> Path:
        return self.out.with_suffix(".log")

    def start(self, *, after: float | None = None) -> tuple[int, float]:
        """Run, killed `after` so many seconds; return the exit status and the seconds."""
        hurt = None if after is None else forked.Hurt(0, "kill", after)
        return self.forks.run(
            forked.Start(arguments("run", self.out, *SMALL), str(self.log), num_ranks=1, hurt=hurt)
        )

    def finish(self) -> dict[str, Any]:
        status, _ = self.start()
        assert status == 0, self.log.read_text()
        return found(self.run)

    def empty(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with forked.serving() as forks:
        yield Server(forks, tmp_path_factory.mktemp("survives") / "work")


@dataclass(frozen=True)
class Whole:
    """The run that was left alone: its results, its seconds, and a copy of its folder."""

    expected: dict[str, Any]
    seconds: float
    copy: Path


@pytest.fixture(scope="module")
def whole(server: Server) -> Whole:
    status, seconds = server.start()
    assert status == 0, server.log.read_text()
    expected = found(server.run)
    copy = server.out.with_name("whole")
    shutil.copytree(server.out, copy, symlinks=True)
    return Whole(expected, seconds, copy)


def found(run: Path) -> dict[str, Any]:
    """Every result of a run, but for what clocks say."""
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    recorded = {
        name: {
            "hash": entry["hash"] if name != "report" else None,
            "outputs": entry["outputs"] if name not in ("evaluate", "report") else None,
            "counts": entry["counts"],
        }
        for name, entry in stages.items()
    }
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    reports = [(run / name).stat().st_size > 1000 for name in ("report.html", "report.md")]
    recipe = (run / "recipe.yaml").read_bytes()
    return {**contents(run), "names": names, "recorded": recorded, "reports": reports, "recipe": recipe}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def flip(content: bytearray, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    return bytes(content)


def block(content: bytearray, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice([16, 512, 4096]))
    return bytes(content[:start]) + bytes(end - start) + bytes(content[end:])


DAMAGES: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "flipped": flip,
    "truncated": lambda content, draw: bytes(content[: draw.randrange(len(content))]),
    "zeroed": block,
    "garbage": lambda content, draw: draw.randbytes(len(content)),
    "foreign": lambda content, draw: draw.choice([b"null", b"[]", b"{}", b"7", b"[" * 3000]),
    "empty": lambda content, draw: b"",
}


def damage(run: Path, draw: random.Random) -> str:
    """Damage one file of a run, and return which and how."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    unfinished = [path for path in files if any(path.match(pattern) for pattern in UNFINISHED)]
    path = draw.choice(draw.choice([files, unfinished or files]))
    how = draw.choice([*DAMAGES, "deleted"])
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](bytearray(path.read_bytes()), draw))
    return f"{how} {path.relative_to(run)}"


def kill_once_or_more(server: Server, whole: Whole, draw: random.Random) -> list[float]:
    """Kill a run at random moments; those that fall after its end count for nothing."""
    moments = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        after = draw.uniform(0.01, whole.seconds)
        status, _ = server.start(after=after)
        assert status in (0, -9), server.log.read_text()
        if status == 0:
            break
        moments.append(after)
    return moments


def survive_kills(server: Server, whole: Whole, *, times: int, draw: random.Random) -> list[Path]:
    """Kill `times` runs and let them end; returns copies of their folders as the kills left them."""
    left: list[Path] = []
    while len(left) < times:
        server.empty()
        moments = kill_once_or_more(server, whole, draw)
        if not moments or not server.run.exists():
            continue
        left.append(server.out.with_name(f"left-{len(left)}"))
        shutil.copytree(server.out, left[-1], symlinks=True)
        assert not differing(server.finish(), whole.expected), moments
        print(f"kill {len(left)}: at {[round(one, 2) for one in moments]} s", flush=True)
    return left


def survive_damages(
    server: Server, whole: Whole, left: list[Path], *, times: int, draw: random.Random
) -> int:
    """Damage runs, half of them whole and half of them cut short; return how many ended equal."""
    equal = 0
    for number in range(times):
        server.empty()
        shutil.copytree(draw.choice(left) if number % 2 else whole.copy, server.out, symlinks=True)
        what = damage(server.run, draw)
        wrong = differing(server.finish(), whole.expected)
        assert not wrong, (what, wrong, server.log.read_text())
        equal += 1
        print(f"damage {equal}: {what}", flush=True)
    return equal


def survive(server: Server, whole: Whole, *, kills: int, damages: int, draw: random.Random) -> int:
    """Return the number of equal results."""
    left = survive_kills(server, whole, times=kills, draw=draw)
    equal = survive_damages(server, whole, left, times=damages, draw=draw)
    print(f"{len(left)} killed and {equal} damaged runs: {len(left) + equal} equal results")
    return len(left) + equal


@pytest.mark.slow  # rounds, processes and stages that are killed have fast tests of their own
def test_a_few_kills_and_a_few_damages_leave_equal_results(server: Server, whole: Whole) -> None:
    assert survive(server, whole, kills=2, damages=4, draw=random.Random(SEED + 1)) == 6


@pytest.mark.slow
def test_a_hundred_kills_and_a_hundred_damages_leave_equal_results(server: Server, whole: Whole) -> None:
    draw = random.Random(SEED)
    assert survive(server, whole, kills=TIMES, damages=TIMES, draw=draw) == 2 * TIMES
