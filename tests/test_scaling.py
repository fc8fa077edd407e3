"""docs/scaling.md: its numbers are the planner's, and each way to start several machines is read by a checker."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

import pages
import render_scaling
from allo.weights import selection

PAGE = "docs/scaling.md"
TORCHRUN = re.compile(r"torchrun (.*)")
BLOCKS = pages.blocks(PAGE)


def scripts() -> dict[str, str]:
    """Every shell script of the page, also those inside of YAML."""
    found = {f"line {block.line}": block.text for block in BLOCKS if block.language == "bash"}
    job, sky = (yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml")
    for name, replica in job["spec"]["pytorchReplicaSpecs"].items():
        (found[name],) = replica["template"]["spec"]["containers"][0]["args"]
    return found | {"SkyPilot": sky["run"]}


SCRIPTS = scripts()
VALUES = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "77",
    "first": "node-1",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
}


def launches(script: str) -> list[list[str]]:
    """The words of each torchrun in a script, with values for its variables."""
    lines = [line for line in script.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    commands = [match[1] for line in lines if (match := TORCHRUN.search(line))]
    return [
        [re.sub(r"\$(\w+)", lambda name: VALUES[name[1]], word) for word in shlex.split(command)]
        for command in commands
    ]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_reads_every_script(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=SCRIPTS[script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


ALL = [(name, words) for name, script in SCRIPTS.items() for words in launches(script)]


def test_each_way_starts_torchrun() -> None:
    assert len({name for name, _ in ALL}) == 6, "one machine, torchrun, Slurm, two kinds of pods, SkyPilot"


@pytest.mark.parametrize(("name", "words"), ALL)
def test_torchruns_own_parser_and_allos_read_every_launch(name: str, words: list[str]) -> None:
    asked = get_args_parser().parse_args(words)
    assert (asked.module, asked.training_script, asked.nproc_per_node) == (True, "allo", "8")
    pages.parse(asked.training_script_args)
    if asked.nnodes != "1:1":
        assert asked.nnodes == "2"
        by_rank = asked.master_addr in ("10.0.0.1", "node-1")
        assert by_rank or (asked.rdzv_endpoint, asked.rdzv_backend, asked.rdzv_id) == (
            "node-1:29500",
            "c10d",
            "77",
        )


def test_slurm_starts_one_torchrun_a_node_with_the_gpus_that_it_asks_for() -> None:
    (script,) = (text for text in SCRIPTS.values() if "#SBATCH" in text)
    assert script.startswith("#!/bin/bash\n"), "sbatch reads the first line"
    lines = script.splitlines()
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH")
    )
    first_command = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:]), "sbatch ignores later ones"
    (words,) = launches(script)
    asked = get_args_parser().parse_args(words)
    assert options["ntasks-per-node"] == "1"
    assert (options["nodes"], options["gpus-per-node"]) == (
        asked.nnodes,
        asked.nproc_per_node,
    )
    assert "requeue" in options


def test_the_job_of_kubernetes_has_the_operators_keys() -> None:
    (job,) = (
        found
        for block in BLOCKS
        if block.language == "yaml"
        for found in [yaml.safe_load(block.text)]
        if "kind" in found
    )
    assert job.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas: dict[str, Any] = job["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        assert replica.keys() == {"replicas", "restartPolicy", "template"}
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch", "the operator sets variables of this container alone"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_the_task_of_skypilot_has_its_keys() -> None:
    (task,) = (
        found
        for block in BLOCKS
        if block.language == "yaml"
        for found in [yaml.safe_load(block.text)]
        if "run" in found
    )
    assert task.keys() <= {"name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["resources"] == {"accelerators": "H100:8"} and task["num_nodes"] == 2
    (mount,) = task["file_mounts"].values()
    assert mount["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")


def test_every_example_stands_on_the_page_with_its_command() -> None:
    text = (pages.ROOT / PAGE).read_text(encoding="utf-8")
    assert [match["name"] for match in render_scaling.PLACE.finditer(text)] == list(render_scaling.EXAMPLES)
    shown = pages.commands(PAGE)
    for example in render_scaling.EXAMPLES.values():
        assert example.arguments in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", render_scaling.EXAMPLES)
def test_an_examples_numbers_are_the_planners(name: str) -> None:
    text = Path(render_scaling.PAGE).read_text(encoding="utf-8")
    assert render_scaling.page(text, [name]) == text, "run python scripts/render_scaling.py"


def test_small_messages_are_as_large_as_the_page_says() -> None:
    """512 processes: a broadcast is a tree, a sum goes twice around a ring."""
    latency, bandwidth, ranks = 20e-6, 50e9, 512
    text = (pages.ROOT / PAGE).read_text(encoding="utf-8")
    hops, steps = (ranks - 1).bit_length(), 2 * (ranks - 1)
    numbers = len(json.dumps(list(range(10**6))))
    passes, counts = -(-63 // selection._DIGIT), 8 * selection._BINS
    for name, size, seconds in (
        ("rank 0's decision", 1e3, hops * (latency + 1e3 / bandwidth)),
        ("the numbers of a million finished batches", numbers, hops * (latency + numbers / bandwidth)),
        ("choosing exactly k weights", passes * counts, passes * (steps * latency + 2 * counts / bandwidth)),
    ):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
        time = f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.1f} ms"
        assert f"| {shown} |" in row and row.endswith(f"= {time} |"), (row, shown, time)
