"""Win rates end to end: a real run, judged by a real model behind `transformers serve` on this machine.

    python -m pytest -m slow tests/winrate/test_winrate_served.py

needs what `pip install "transformers[serving]"` brings beside transformers. A model that is small enough for a test
judges nothing, so what is tested is the way there and back: the first judge says the same to every question, the second
is the laboratory's model, which does not know what a verdict is.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allo import cli
from allo.pipeline import run_all
from allo.winrate.wording import NO_VERDICT
from server import without_proxy
from tiny_run import LAB, tiny

pytestmark = pytest.mark.slow

VARIABLE = "ALLO_TEST_KEY"
WAIT = 120  # seconds for a server to load its model
PROMPTS = 8  # of the tiny run's test set
SAYS = ("judge:", "Verdict:", "1", "<eos>")
"""Each word is followed by the next; the chat template ends with the first."""


def save_first_answers_friend(folder: Path) -> None:
    """Save a Llama that only knows which word follows which, and so always prefers the first answer."""
    words = ["<unk>", *SAYS]
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8192, bos_token_id=None, eos_token_id=len(words) - 1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if not name.endswith("norm.weight"):
                param.zero_()
        for word in range(len(words)):
            model.model.embed_tokens.weight[word, word] = 1
            model.lm_head.weight[min(word + 1, len(words) - 1), word] = 1
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=words[0], eos_token=SAYS[-1], pad_token=words[0]
    )
    fast.chat_template = "{{ messages[-1]['content'] }}\n" + SAYS[0]
    fast.save_pretrained(folder)


def save_laboratory(folder: Path) -> None:
    """Save the laboratory's model with a chat template that asks for sums, which it can do."""
    shutil.copytree(LAB, folder)
    (folder / "chat_template.jinja").write_text(
        "Problem: Tom has 7 pens. He buys 5 more pens. How many pens now?\n"
    )


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the model in the folder, and yield the server's address."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(
            package, reason="`transformers serve` needs it: pip install transformers[serving]"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [
        sys.executable,
        "-c",
        "from transformers.cli.transformers import main; main()",
        "serve",
        str(folder),
    ]
    log = folder.with_suffix(".log")
    with log.open("wb") as out:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen([*command, *options], stdout=out, stderr=out, env=environment)
    try:
        deadline = time.monotonic() + WAIT
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a key that the server does not need, and no proxy to this machine."""
    monkeypatch.setenv(VARIABLE, "none")
    without_proxy(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = ("sft=null", "locate=null", "score.scorer=uniform", "forget.density=1.0", "improve.density=1.0")
    recipe = tiny(tmp_path_factory.mktemp("runs"), *whole)
    return run_all(recipe).path


def allo(monkeypatch: pytest.MonkeyPatch, *arguments: object, code: int = 0) -> None:
    monkeypatch.setattr("sys.argv", ["allo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code or 0) == code


@pytest.mark.usefixtures("own")
def test_a_run_is_judged_by_a_served_model_and_the_report_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "judge"
    save_first_answers_friend(judge)
    with served(judge) as address:
        place = ["--base-url", address, "--model", judge, "--key-variable", VARIABLE, "--concurrency", 2]
        options = [*place, "--answers", "sampled", "--max-tokens", 8, "--temperature", 0, "--max-retries", 0]
        allo(monkeypatch, "winrate", "judge", run, "--against", "solution", *options)
        allo(monkeypatch, "winrate", "judge", run, "--against", "start", *options)
    (path,) = run.glob("judged-test-aligned-sampled-solution-*-judge.json")
    record = json.loads(path.read_text())
    found, counts = record["summary"], record["counts"]
    asked = [row for row in record["verdicts"] if not row["identical"]]
    assert asked and counts["prompts"] == PROMPTS and counts["replies"] == 2 * len(asked)
    assert {row[order]["reply"] for row in asked for order in ("model_first", "baseline_first")} == {
        "Verdict: 1"
    }
    assert found["win_rate"]["value"] == 0.5 and found["position_bias"] == 1 and found["agreement"] == 0
    assert counts["completion_tokens"] >= 2 * counts["replies"] and counts["prompt_tokens"] > 0
    # The server is gone; everything it said is kept, so nobody is asked.
    content = path.read_bytes()
    allo(monkeypatch, "winrate", "judge", run, "--against", "solution", *options)
    assert path.read_bytes() == content and "0 questions asked" in capsys.readouterr().err
    allo(monkeypatch, "report", run)
    assert "| aligned-sampled | test | solution |" in (run / "report.md").read_text()


@pytest.mark.usefixtures("own")
def test_a_judge_that_gives_no_verdict_and_one_that_is_not_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "laboratory"
    save_laboratory(judge)
    with served(judge) as address:
        options = ["--base-url", address, "--key-variable", VARIABLE, "--max-tokens", 32, "--max-retries", 0]
        judged = ["winrate", "judge", run, "--against", "solution", "--answers", "sampled", *options]
        judged += ["--temperature", 0]
        allo(monkeypatch, *judged, "--model", judge)
        (path,) = run.glob("judged-test-aligned-sampled-solution-*laboratory.json")
        record = json.loads(path.read_text())
        replies = [row["model_first"]["reply"] for row in record["verdicts"] if not row["identical"]]
        assert replies and all("+" in reply for reply in replies)
        assert record["summary"]["agreement"] is None
        assert record["counts"]["unread"] == {NO_VERDICT: 2 * len(replies)}
        assert "replies without a verdict" in capsys.readouterr().out
        allo(monkeypatch, *judged, "--model", "unheard-of", code=2)
        assert "none of" in capsys.readouterr().err
