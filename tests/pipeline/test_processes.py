"""A recipe on several processes ends as in one: the same bytes, and trained weights but for rounding."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.ranks.forked import Hurt, Server, Start, serving
from tiny_run import arguments, contents, environment

SMALL = (
    "sft=null",
    "data.limit=8",
    "evaluate.sets={test: {task: planted_flaws, split: test, limit: 6}}",
    "evaluate.start=true",
    "evaluate.max_new_tokens=24",
    "evaluate.likelihood_pairs=6",
    "sample.batch_size=1",
    "score.batch_size=2",
    "score.scorer=confidence",
    "score.beside=[edit]",
)
UNTRAINED = (
    "01-completions.jsonl",
    "02-verdicts.jsonl",
    "03-pairs.jsonl",
    "03-wrong.jsonl",
    "05-token-scores.parquet",
)
LOSS = 1e-6
SAME_PLACES = 0.995  # rounding may select another weight of almost the same importance


@dataclass(frozen=True)
class Runs:
    server: Server
    folder: Path

    def run(self, name: str, num_ranks: int, *more: str, hurt: Hurt | None = None, verb: str = "run") -> int:
        given = arguments(verb, self.folder / name, *SMALL, *more)
        return self.server.run(Start(given, str(self.log(name)), num_ranks, hurt))[0]

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def path(self, name: str) -> Path:
        return self.folder / name / "tiny"

    def copy(self, name: str, to: str, *without: str) -> None:
        shutil.copytree(self.folder / name, self.folder / to, symlinks=True)
        (self.folder / to / "tiny" / ".lock").unlink()
        for each in without:
            (self.path(to) / each).unlink()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The run of one process is there as `one`."""
    with serving() as server:
        found = Runs(server, tmp_path_factory.mktemp("processes"))
        assert found.run("one", 1) == 0, found.log("one").read_text()
        yield found


@pytest.mark.invariant(
    "A recipe's result does not depend on the number of its processes, but for rounding in training."
)
@pytest.mark.parametrize(
    "num_ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_several_processes_end_as_one_file_by_file(runs: Runs, num_ranks: int) -> None:
    name = f"{num_ranks} ranks"
    status = runs.run(name, num_ranks)
    log = runs.log(name).read_text()
    assert status == 0, log
    check_equal(runs.path("one"), runs.path(name))
    assert log.count("done in") == 10, f"each stage is reported once:\n{log}"
    assert "[transformers]" not in log, f"transformers advises another launcher:\n{log}"


def check_equal(one: Path, several: Path) -> None:
    """Compare two runs: bytes where nothing was trained, otherwise numbers."""
    expected, found = contents(one), contents(several)
    assert expected.keys() == found.keys()
    for name in (*UNTRAINED, "07-improve/model/config.json"):
        assert expected[name] == found[name], name
    for name in expected:
        if name.endswith("metrics.jsonl"):
            rows = [[json.loads(row) for row in each[name].splitlines()] for each in (expected, found)]
            assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
            for here, there in zip(*rows, strict=True):
                assert here["loss"] == pytest.approx(there["loss"], rel=0, abs=LOSS), name
    before, after = (
        {
            key: tensor.flatten()
            for key, tensor in load_file(run / "07-improve/model/model.safetensors").items()
        }
        for run in (one, several)
    )
    equal = sum(int(((before[key] - after[key]).abs() < 1e-6).sum()) for key in before)
    assert equal >= SAME_PLACES * sum(tensor.numel() for tensor in before.values())
    evaluations = [json.loads(each["08-eval.json"]) for each in (expected, found)]
    start, again = (each["completions"]["start"] for each in evaluations)
    assert start == again, "the start was not trained"
    kls = [each["models"]["aligned"]["kl"]["value"] for each in evaluations]
    assert kls[0] == pytest.approx(kls[1], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_an_evaluation_of_the_same_weights_has_the_same_bytes(runs: Runs, num_ranks: int) -> None:
    """This includes KL, likelihoods and intervals, whose sums are made in the same order."""
    name = f"evaluated by {num_ranks}"
    runs.copy("one", name)
    manifest = json.loads((runs.path("one") / "manifest.json").read_text())
    assert manifest["stages"]["evaluate"]
    assert runs.run(name, num_ranks, "out=" + str(runs.folder / name), verb="evaluate") == 0
    (runs.path(name) / "08-eval.json").unlink()
    assert runs.run(name, num_ranks, verb="evaluate") == 0, runs.log(name).read_text()
    assert contents(runs.path(name))["08-eval.json"] == contents(runs.path("one"))["08-eval.json"]


@pytest.mark.slow
def test_killed_again_and_again_and_restarted_with_other_numbers_it_ends_the_same(runs: Runs) -> None:
    ended = 1
    for attempt in range(12):
        num_ranks = (2, 3, 1)[attempt % 3]
        hurt = Hurt(attempt % num_ranks, "kill", 2.0 + 1.5 * attempt)
        ended = runs.run("killed", num_ranks, hurt=hurt)
        if ended == 0:
            break
    assert ended == 0 or runs.run("killed", 2) == 0, runs.log("killed").read_text()
    check_equal(runs.path("one"), runs.path("killed"))
    assert not [*runs.path("killed").rglob("*.part"), *runs.path("killed").rglob("*.begun")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [("kill", "was ended by SIGKILL"), ("raise", "PlantedError: planted"), ("stop", "has not answered")],
)
def test_a_rank_that_is_lost_ends_all_with_one_message_within_a_minute(
    runs: Runs, how: str, words: str
) -> None:
    name = f"{how} one"
    given = arguments("run", runs.folder / name, *SMALL)
    status, seconds = runs.server.run(Start(given, str(runs.log(name)), 2, Hurt(1, how, 3.0)))
    log = runs.log(name).read_text()
    assert status != 0 and seconds < 3 + 60
    assert log.count(words) == 1, log
    assert log.count("Traceback") == (how == "raise"), log
    assert runs.run(name, 2) == 0, runs.log(name).read_text()
    check_equal(runs.path("one"), runs.path(name))


@pytest.mark.slow
def test_a_users_error_is_said_once_as_by_one_process(runs: Runs) -> None:
    """A shared stage fails on all ranks, and a recipe's fault is found by the first before."""
    for name, bad in (("early", "locate.criterion=nothing"), ("late", "judge.max_unanswered=0.01")):
        wrong = (bad, "sample.max_new_tokens=1")
        said = []
        for num_ranks in (1, 2):
            status = runs.run(f"{name} {num_ranks}", num_ranks, *wrong)
            log = runs.log(f"{name} {num_ranks}").read_text()
            said.append(log[log.index("allo: ") :].replace(f"{name} {num_ranks}", name))
            assert status == 2 and log.count("allo: ") == 1, log
        assert said[0] == said[1]


LAUNCHERS = {
    "allo": (["-m", "allo"], ["--processes", "2"]),
    "torchrun": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "allo"], []),
    "accelerate": (
        [
            "-m",
            "accelerate.commands.launch",
            "--cpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "-m",
            "allo",
        ],
        [],
    ),
}


def launched(launcher: str, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    before, after = LAUNCHERS[launcher]
    command = [sys.executable, *before, *arguments("run", out, *SMALL, *more), "--until", "judge", *after]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_launcher_starts_processes_that_share_the_work(runs: Runs, launcher: str) -> None:
    done = launched(launcher, runs.folder / launcher)
    assert done.returncode == 0, done.stderr
    found, expected = contents(runs.path(launcher)), contents(runs.path("one"))
    for name in UNTRAINED[:2]:
        assert found[name] == expected[name]
    assert done.stderr.count("sample    done in") == 1


@pytest.mark.slow
def test_a_users_error_under_processes_has_its_exit_code_and_is_said_once(runs: Runs) -> None:
    done = launched("allo", runs.folder / "bad", "sample.max_new_tokens=1", "judge.max_unanswered=0.01")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("have no final answer") == 1 and "Traceback" not in done.stderr
