"""Sampling speed in this process and at `transformers serve` on the same machine, alternately, in tokens per second.

Both draw n completions of each prompt from the same model, with the same dtype and settings. Ours is
`allo.sampling.generate` in batches. `allo.sampling.served.complete` sends requests over loopback to a server, which
takes prompts one by one, or together with `--continuous-batching`. They alternate, ours first, with new random
numbers each round. The server's start does not count. Needs `pip install transformers[serving]`.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import torch

from allo.files.artifacts import ResumableLines
from allo.files.records import Prompt
from allo.models.load import Model, Tokenizer, load_model, load_tokenizer
from allo.models.tokenization import prompt_ids, prompt_text
from allo.sampling.endpoint import Endpoint
from allo.sampling.replies import Asked, RequestSettings
from allo.sampling.served import complete
from allo.tasks.prompts import PromptSource, read_prompts
from benchmarks.record import RESULTS, Record
from benchmarks.sampling.throughput import TEMPERATURE, TOP_P, ours

# The model's generation_config.json decides whether `transformers serve` samples, and from how many tokens.
SAMPLES = {"generation_config": json.dumps({"do_sample": True, "top_k": 0})}
STARTED_WITHIN = 300  # seconds


def in_process(
    model: Model, tokenizer: Tokenizer, prompts: list[Prompt], options: argparse.Namespace, seed: int
) -> int:
    """Return the number of tokens of all completions."""
    ids = [prompt_ids(tokenizer, prompt.prompt) for prompt in prompts]
    return ours(model, tokenizer, ids, seed=seed, options=options)


def at_server(
    url: str, tokenizer: Tokenizer, prompts: list[Prompt], options: argparse.Namespace, seed: int
) -> int:
    """Return the number of tokens of all completions."""
    with tempfile.TemporaryDirectory() as folder:
        counts = complete(
            [Endpoint(url, options.model, concurrency=options.concurrency, timeout=600.0)],
            [
                Asked(
                    prompt.id,
                    prompt_text(tokenizer, prompt.prompt, sys.maxsize),
                    len(prompt_ids(tokenizer, prompt.prompt)),
                )
                for prompt in prompts
            ],
            RequestSettings(
                options.num_generations, TEMPERATURE, TOP_P, options.max_new_tokens, seed, extra_body=SAMPLES
            ),
            lines=ResumableLines(Path(folder) / "completions"),
            patience=60.0,
            advice="",
            num_tokens=lambda text: len(tokenizer(text, add_special_tokens=False).input_ids),
        )
    assert counts["prompts_read_otherwise"] == 0
    return int(counts["tokens"])


@contextlib.contextmanager
def transformers_serve(options: argparse.Namespace) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", options.model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--log-level", "error"]
    command += ["--device", options.device] + ["--continuous-batching"] * options.continuous_batching
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + STARTED_WITHIN
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    sys.exit("transformers serve did not start: is transformers[serving] installed?")


def rate(run: Callable[[int], int], seed: int) -> float:
    begin = time.perf_counter()
    return run(seed) / (time.perf_counter() - begin)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare sampling in this process with sampling at a server."
    )
    parser.add_argument(
        "--model", default=str(files("allo") / "lab"), help="a folder; default: the laboratory's"
    )
    parser.add_argument(
        "--data-folder", type=Path, help="rows as FOLDER/<task>/<split>.jsonl[.gz]; else the hub"
    )
    parser.add_argument("--task", default="planted_flaws")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--num-generations", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=320)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument(
        "--continuous-batching", action="store_true", help="the server decodes requests together"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a CPU, for either")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/served-TASK-DEVICE.json")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype=torch.bfloat16, device=options.device)
    tokenizer = load_tokenizer(options.model)
    prompts = read_prompts(PromptSource(task=options.task, folder=options.data_folder, limit=options.prompts))
    with transformers_serve(options) as url:
        runs: dict[str, Callable[[list[Prompt], int], int]] = {
            "in process": lambda some, seed: in_process(model, tokenizer, some, options, seed),
            "at the server": lambda some, seed: at_server(url, tokenizer, some, options, seed),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():  # one small run first: loading and compiling at first use is not sampling
            run(prompts[:1], 0)
        for seed in range(1, options.rounds + 1):
            for name, run in runs.items():
                rates[name].append(rate(lambda seed, run=run: run(prompts, seed), seed))  # type: ignore[misc]
                print(f"round {seed}, {name}: {rates[name][-1]:.1f} tokens/s", flush=True)
    ours, other = rates.values()
    row = {
        "device": options.device,
        "threads": None if options.device == "cuda" else options.threads,
        "prompts": f"{options.prompts} of {options.task} x {options.num_generations}",
        "new tokens, at most": options.max_new_tokens,
        "server": "continuous batching" if options.continuous_batching else "one after the other",
        "rounds": options.rounds,
        "in process, tokens/s": statistics.median(ours),
        "at the server, tokens/s": statistics.median(other),
        "ratio": statistics.median(ours) / statistics.median(other),
        "ratio, lowest round": min(a / b for a, b in zip(ours, other, strict=True)),
    }
    name = f"served-{options.task}-{options.device}.json"
    Record(options.output or RESULTS / name, "served", device=options.device).write([row])
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
