"""Server samples end in training as they ended at the server: at a stop string, at a token, or by the model's own end."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_sample_backends import CHAT_TEMPLATE, at, problem, sampled

from allo.errors import UserError
from allo.files.artifacts import read_jsonl
from allo.files.records import Completion
from allo.models.load import load_tokenizer
from allo.models.rows import counted_completions
from model_server import ModelServer, model_server
from tiny_run import LAB

TOKENIZER = load_tokenizer(LAB)
EOS = TOKENIZER.eos_token_id
STOPS = '["\\n", ". The"]'


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with model_server() as server:
        yield server


def trained_on(run: Path) -> list[int]:
    """The ids of the one text that all completions of a run have, as a trainer reads them."""
    found = read_jsonl(run / "01-completions.jsonl", Completion)
    rows = [
        {
            "prompt": problem(0),
            "completion": one.text,
            "finished": one.finished,
            "completion_ids": one.token_ids,
        }
        for one in found
    ]
    kept, _ = counted_completions(TOKENIZER, rows, max_length=1000)
    (ids,) = {tuple(row["completion_ids"]) for row in kept}
    return list(ids)


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    ("text", "reason", "beside", "after"),
    [
        (" 5\nNext", "stop", {}, ids_of(" 5\n")),
        (" 5", "stop", {"stop_reason": "\n"}, ids_of(" 5\n")),
        (" 5", "stop", {"stop_reason": None}, [*ids_of(" 5"), EOS]),
        (" 5", "stop", {"matched_stop": ". The"}, ids_of(" 5. The")),
        (" 5", "stop", {"matched_stop": 7}, [*ids_of(" 5"), 7]),
        (" 5", "stop", {"matched_stop": EOS}, [*ids_of(" 5"), EOS]),
        (" 5", "stop", {"stop_reason": 10**9}, [*ids_of(" 5"), EOS]),
        (" 5", "stop", {"stop_type": "word", "stopping_word": "\n"}, ids_of(" 5\n")),
        (" 5", "stop", {"stop_type": "eos", "stopping_word": ""}, [*ids_of(" 5"), EOS]),
        (" 5", "stop_sequence", {}, ids_of(" 5")),  # one of two, unknown which
        (" 5", "eos_token", {}, [*ids_of(" 5"), EOS]),
        (" 5", "stop", {}, [*ids_of(" 5"), EOS]),
        (" 5", "length", {"stop_reason": None}, ids_of(" 5")),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_sample_is_trained_on_with_what_ended_it(
    text: str,
    reason: str,
    beside: dict[str, Any],
    after: list[int],
    served: ModelServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served.choose = lambda asked: [(text, reason)] * asked["n"]
    served.beside = beside
    run = sampled(tmp_path, *at(served.url), f"sample.stop={STOPS}")
    assert trained_on(run) == after
    is_guessed = (reason, beside) == ("stop", {}) and "\n" not in text
    said = " ".join(capsys.readouterr().err.split())
    assert ("the servers do not say whether a string of sample.stop ended them" in said) == is_guessed
    counts = json.loads((run / "manifest.json").read_text())["stages"]["sample"]["counts"]
    assert counts["ends_guessed"] == (counts["completions"] if is_guessed else 0)


def test_without_stop_strings_nothing_is_guessed(served: ModelServer, tmp_path: Path) -> None:
    run = sampled(tmp_path, *at(served.url))
    assert all(one.token_ids is None for one in read_jsonl(run / "01-completions.jsonl", Completion))
    counts = json.loads((run / "manifest.json").read_text())["stages"]["sample"]["counts"]
    assert counts["ends_guessed"] == 0


@pytest.mark.parametrize(
    "beside",
    [
        {"thinking": "Seven?"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Seven?"}]},
        {"reasoning": "Seven?"},
        {"thoughts": ["Seven?"]},
        {"thinking_blocks": [{"thinking": "Seven?"}]},
    ],
    ids=lambda beside: next(iter(beside)),
)
@pytest.mark.parametrize("chat", [False, True])
def test_thoughts_beside_the_text_are_refused_whatever_their_name(
    beside: dict[str, Any], chat: bool, served: ModelServer, tmp_path: Path
) -> None:
    own = []
    if chat:
        tokenizer = load_tokenizer(LAB)
        tokenizer.chat_template = CHAT_TEMPLATE
        shutil.copytree(LAB, tmp_path / "chat", ignore=shutil.ignore_patterns("__pycache__"))
        tokenizer.save_pretrained(tmp_path / "chat")
        own = ["chat=true", f"model={tmp_path / 'chat'}"]
    served.beside = beside
    with pytest.raises(UserError, match="the server gives thoughts apart from the text"):
        sampled(tmp_path, *at(served.url), *own)
    served.beside = {name: type(value)() for name, value in beside.items()}  # empty: there was none
    assert sampled(tmp_path, *at(served.url), *own)
