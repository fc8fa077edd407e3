"""Sampling from real servers, `transformers serve` of the laboratory's model: `pytest -m slow` on this file, a minute."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from allo.files.artifacts import read_jsonl
from allo.files.records import Completion
from allo.pipeline import run_all
from server import without_proxy
from tiny_run import LAB, environment, tiny

pytest.importorskip("uvicorn", reason="`transformers serve` needs transformers[serving]")
pytestmark = pytest.mark.slow

PROMPTS, N = 24, 4
STARTED_WITHIN = 120  # seconds, on a busy machine
KILLED_AFTER = 12  # completions


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment() | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def wait_for(url: str) -> None:
    until = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not start")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxy(monkeypatch, "OPENAI_API_KEY")


def test_of_two_servers_one_is_killed_midway_and_every_completion_arrives_once(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(LAB, model, ignore=shutil.ignore_patterns("__pycache__"))
    with (
        transformers_serve(model, tmp_path / "one.log") as (one, first),
        transformers_serve(model, tmp_path / "two.log") as (two, second),
    ):
        wait_for(one)
        wait_for(two)
        servers = json.dumps({"base_urls": [f"{one}/v1", f"{two}/v1"], "concurrency": 3})
        recipe = tiny(
            tmp_path,
            "sft=null",
            f"data.limit={PROMPTS}",
            "sample.backend=openai",
            f"sample.model={model}",
            f"sample.servers={servers}",
        )
        part = recipe.run_folder / "01-completions.jsonl.waves.part"
        killed = threading.Event()

        def kill_midway() -> None:
            while not part.exists() or part.read_bytes().count(b"\n") < KILLED_AFTER:
                time.sleep(0.01)
            os.kill(second.pid, signal.SIGKILL)
            killed.set()

        threading.Thread(target=kill_midway, daemon=True).start()
        run = run_all(recipe, until="sample")
        assert killed.is_set() and first.poll() is None and second.wait() == -signal.SIGKILL
    completions = read_jsonl(run.completions, Completion)
    ids = list(dict.fromkeys(each.prompt_id for each in completions))
    assert len(ids) == PROMPTS
    assert [(each.prompt_id, each.index) for each in completions] == [(id, k) for id in ids for k in range(N)]
    counts = json.loads(run.manifest.read_text())["stages"]["sample"]["counts"]
    assert counts["retries"] >= 1 and counts["prompts_read_otherwise"] == 0
    # Each request has its own seed, and the server draws with it.
    assert len({(each.prompt_id, each.text) for each in completions}) > PROMPTS
