"""Servers that lie, drip, flood and mislead: each ends in a kept reply or a reason, never in a traceback or a full memory."""

import gzip
import json
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from allo.files.records import Message
from allo.sampling.endpoint import Endpoint
from allo.sampling.questions import Answers, Question, ask
from allo.sampling.server_words import BY_ITSELF, BY_LENGTH, BY_OTHERS, MOST_TOKENS, count_of, wait_of
from allo.sampling.transport import largest_reply
from hostile import ENDS, FLOODS, busy, completion, sends
from server import KEY, LONGEST, MODEL, Chat, serving, with_short_pauses, without_proxy

VARIABLE = "ALLO_TEST_KEY"
TOKENS = 20
BOUND = largest_reply(TOKENS)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    without_proxy(monkeypatch)
    with_short_pauses(monkeypatch)


@pytest.fixture
def chat() -> Iterator[Chat]:
    with serving(lambda content: f"answer to {content}") as served:
        yield served


def asked(
    chat: Chat, folder: Path, *, num: int = 1, max_retries: int = 0, timeout: float = LONGEST
) -> Answers:
    place = Endpoint(chat.url, MODEL, VARIABLE, concurrency=1, timeout=timeout, max_retries=max_retries)
    questions = [Question(f"q{n}", [Message(role="user", content=f"question {n}")]) for n in range(num)]
    return ask(place, questions, path=folder / "out.jsonl", max_tokens=TOKENS)


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_stopped_at_its_bound(name: str, chat: Chat, tmp_path: Path) -> None:
    act = FLOODS[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chat.failures = [act]
    began = time.monotonic()
    answers = asked(chat, tmp_path, num=2)
    assert time.monotonic() - began < LONGEST
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 128 << 20, f"{grown >> 20} MiB"
    assert list(answers.failed) == ["q0"] and answers.replies["q1"].text == "answer to question 1"
    if "headers" not in name:
        assert "more than the" in answers.failed["q0"] and "bytes" in answers.failed["q0"]


def test_a_reply_of_the_length_that_was_asked_for_is_read(chat: Chat, tmp_path: Path) -> None:
    long = "\u6f22" * 40 * TOKENS  # 3 bytes each, 6 in JSON
    chat.failures = [lambda handler: handler.say(long)]
    assert asked(chat, tmp_path).replies["q0"].text == long
    assert largest_reply(10_000) > 10_000 * 1000 and largest_reply(1 << 40) < 1 << 30


PACKED = [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (lambda body: body, "identity")]


@pytest.mark.parametrize(("packer", "coding"), PACKED, ids=[coding for _, coding in PACKED])
def test_a_packed_reply_is_read(
    packer: Callable[[bytes], bytes], coding: str, chat: Chat, tmp_path: Path
) -> None:
    chat.failures = [sends(packer(json.dumps(completion()).encode()), Content_Encoding=coding)]
    assert asked(chat, tmp_path).replies["q0"].text == "Fine."


GOOD = json.dumps(completion())
DEEP = 10_000
BODIES = {
    "nested": b'{"choices": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "nested, unclosed": b"[" * DEEP,
    "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "nested usage": GOOD.replace("10", '{"a":' * DEEP + "1" + "}" * DEEP).encode(),
    "the same key twice": GOOD.replace('"choices"', '"choices": [], "choices"').encode(),
    "null": b"null",
    "a list": b"[]",
    "a number": b"17",
    "a text": b'"Fine."',
    "true": b"true",
    "empty": b"",
    "empty object": b"{}",
    "NUL": b"\0" * 100,
    "not UTF-8": b'{"choices": "\xff"}',
    "UTF-16": GOOD.encode("utf-16"),
    "choices null": b'{"choices": null}',
    "choices number": b'{"choices": 5}',
    "choices text": b'{"choices": "Fine."}',
    "choices object": b'{"choices": {"0": {"message": {"content": "Fine."}}}}',
    "choices of null": b'{"choices": [null]}',
    "choices of text": b'{"choices": ["Fine."]}',
    "choices of lists": b'{"choices": [[]]}',
    "message list": json.dumps(completion(message=[])).encode(),
    "message number": json.dumps(completion(message=3)).encode(),
    "content number": json.dumps(completion(message={"role": "assistant", "content": 3})).encode(),
    "content object": json.dumps(completion(message={"role": [], "content": {}})).encode(),
}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, "application/json"), (200, "text/plain; charset=rot13"), (400, "application/json")],
)
@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_another_form_is_a_reason(
    name: str, status: int, kind: str, chat: Chat, tmp_path: Path
) -> None:
    chat.failures = [sends(BODIES[name], status=status, kind=kind)]
    answers = asked(chat, tmp_path, num=2)
    assert set(answers.failed) == {"q0"} and set(answers.replies) == {"q1"}
    assert answers.failed["q0"].isprintable()


CODES: list[Any] = [["model_not_found"], {"a": 1}, 7, None, True, "x" * 10_000, -1.5]


@pytest.mark.parametrize("code", CODES, ids=lambda code: type(code).__name__)
@pytest.mark.parametrize("field", ["code", "message", "type", "param"])
def test_an_error_of_any_form_is_a_reason(field: str, code: Any, chat: Chat, tmp_path: Path) -> None:
    chat.failures = [
        sends(json.dumps({"error": {"message": "no", field: code}}).encode(), status=400),
        sends(json.dumps({"error": code}).encode(), status=400),
        sends(json.dumps({field: code}).encode(), status=422),
    ]
    answers = asked(chat, tmp_path, num=4)
    assert set(answers.failed) == {"q0", "q1", "q2"} and set(answers.replies) == {"q3"}


COUNTS = {
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "word": '"many"',
    "negative": "-1",
    "NaN": "NaN",
    "infinite": "Infinity",
    "1e999": "1e999",
    "half": "5.5",
    "true": "true",
    "null": "null",
    "list": "[5]",
    "object": "{}",
    "beyond": str(MOST_TOKENS + 1),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_a_count_that_is_none_is_unknown_and_the_reply_is_kept(
    field: str, name: str, chat: Chat, tmp_path: Path
) -> None:
    body = json.dumps(completion(**{field: "HERE"})).replace('"HERE"', COUNTS[name])
    chat.failures = [sends(body.encode())]
    answers = asked(chat, tmp_path, num=2)
    assert answers.replies["q0"].text == "Fine." and getattr(answers.replies["q0"], field) is None
    counts = answers.counts(Endpoint(chat.url, MODEL, price_in=1.0, price_out=1.0))
    assert counts["prompt_tokens"] + counts["completion_tokens"] == 30 - (
        10 if field == "prompt_tokens" else 5
    )
    again = asked(chat, tmp_path, num=2)
    assert again.replies == answers.replies and again.asked == 0


@pytest.mark.parametrize("usage", [b'"many"', b"[]", b"7", b"null"])
def test_usage_of_another_form_is_unknown(usage: bytes, chat: Chat, tmp_path: Path) -> None:
    body = json.dumps(completion() | {"usage": "HERE"}).encode().replace(b'"HERE"', usage)
    chat.failures = [sends(body)]
    reply = asked(chat, tmp_path).replies["q0"]
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("Fine.", None, None)


@pytest.mark.parametrize(("number", "count"), [(0, 0), (5, 5), (5.0, 5), (MOST_TOKENS, MOST_TOKENS)])
def test_a_count_is_one(number: float, count: int) -> None:
    assert count_of(number) == count


@pytest.mark.parametrize(("reason", "finished", "cut", "known"), ENDS, ids=lambda value: repr(value)[:20])
def test_the_end_of_a_reply_is_read_in_every_servers_words(
    reason: Any,
    finished: bool,
    cut: bool,
    known: bool,
    chat: Chat,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat.failures = [sends(json.dumps(completion(finish_reason=reason)).encode())] * 2
    answers = asked(chat, tmp_path, num=3)
    for id in ("q0", "q1"):
        reply = answers.replies[id]
        assert (reply.text, reply.finished, reply.is_cut_short) == ("Fine.", finished, cut)
    said = capsys.readouterr().err
    assert said.count("such replies count as unfinished") == (0 if known else 1), "said once"
    assert asked(chat, tmp_path, num=3).replies == answers.replies


def test_no_word_of_an_end_has_two_meanings() -> None:
    assert not BY_ITSELF & BY_LENGTH and not (BY_ITSELF | BY_LENGTH) & BY_OTHERS


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (" 7 ", 7.0),
        ("3600", 3600.0),
        ("9" * 400, float("inf")),
        ("²", None),
        ("٣", None),
        ("½", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("1,000", None),
        ("0x10", None),
        ("1_0", None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Wed, 99 Foo 2030 99:99:99 GMT", None),
        ("Fri, 31 Dec 99999999 23:59:59 GMT", None),
    ],
)
def test_when_to_ask_again_is_read_or_ignored(
    header: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allo.sampling.server_words.time.time", lambda: NOW)
    found = wait_of({"retry-after": header})
    assert found == seconds if seconds is None else found == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize("header", ["²", "soon", "-5", "", "nan", "1e-3", "0"])
def test_a_wait_that_is_none_is_the_usual_pause(header: str, chat: Chat, tmp_path: Path) -> None:
    chat.failures = [busy(header), busy(header, 503)]
    assert asked(chat, tmp_path, max_retries=2).replies["q0"].text == "answer to question 0"


def test_a_wait_above_two_minutes_is_waited_for(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("allo.sampling.questions.asyncio.sleep", sleep)
    chat.failures = [busy("150")]
    assert asked(chat, tmp_path, max_retries=5).replies["q0"].text == "answer to question 0"
    assert 150 in waited


@pytest.mark.parametrize("header", ["3600", "9" * 400, "Thu, 31 Dec 2099 23:59:59 GMT"])
def test_a_wait_beyond_the_patience_is_said(header: str, chat: Chat, tmp_path: Path) -> None:
    chat.failures = [busy(header)]
    answers = asked(chat, tmp_path, max_retries=1, timeout=10)
    assert "slow down; it asks to wait" in answers.failed["q0"]
    assert "at most 36 s are waited" in answers.failed["q0"] and len(chat.requests) == 1


KEPT: list[Any] = [
    {},
    {"hash": "x"},
    {"id": 1, "hash": "x", "text": "t", "finished": True},
    {"id": "q0", "hash": [], "text": "t", "finished": True},
    {"id": "q0", "hash": "HASH", "text": None, "finished": True},
    {"id": "q0", "hash": "HASH", "text": "t", "finished": "yes"},
    {"id": "q0", "hash": "HASH", "text": "t", "finished": True, "ended": 3},
    "text",
    7,
    None,
    [],
]


@pytest.mark.parametrize("row", KEPT, ids=lambda row: json.dumps(row)[:40])
def test_a_kept_reply_of_another_form_is_asked_for_again(
    row: Any, chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = asked(chat, tmp_path, num=2)
    file = tmp_path / "out.jsonl.replies"
    # Lines without a digest, as earlier versions wrote them.
    first, second = (line.partition(" ")[2] for line in file.read_text().splitlines(keepends=True))
    damaged = json.dumps([row]).replace("HASH", json.loads(first)[0]["hash"]) + "\n"
    file.write_text(damaged + second)
    again = asked(chat, tmp_path, num=2)
    assert again.replies == before.replies and again.asked == 1
    said = capsys.readouterr().err
    assert ("1 of 2 kept replies are not as allo writes them" in said) == isinstance(row, dict)
    assert ("dropped 1 such lines" in said) == (not isinstance(row, dict))


def test_counts_that_an_earlier_allo_kept_are_looked_at_too(chat: Chat, tmp_path: Path) -> None:
    asked(chat, tmp_path)
    file = tmp_path / "out.jsonl.replies"
    earlier = file.read_text().partition(" ")[2]  # without a digest
    file.write_text(earlier.replace('"prompt_tokens": 10', '"prompt_tokens": "many"'))
    again = asked(chat, tmp_path)
    assert again.asked == 0 and again.replies["q0"].prompt_tokens is None
    assert again.counts(Endpoint(chat.url, MODEL))["prompt_tokens"] == 0
