"""Asking an endpoint: a real server that fails in every way that servers do."""

import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from allo.errors import UserError
from allo.files.records import Message
from allo.sampling import endpoint as endpoints
from allo.sampling.endpoint import Endpoint, check_endpoint
from allo.sampling.questions import BY_ITSELF, GIVE_UP_AFTER, Answers, Question, ask, kept
from server import (
    KEY,
    LONGEST,
    MODEL,
    PATIENCE,
    Chat,
    Handler,
    garbage,
    half,
    other_json,
    page,
    serving,
    stall,
    status,
    without_proxy,
)

VARIABLE = "ALLO_TEST_KEY"
NUM = 12
# With a concurrency of 1: a request may be on its way before the refusal of the last one is read.
AT_ONCE = 2


def choose(handler: Handler, **choice: object) -> None:
    """A choice of the given fields alone."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    handler.send(200, json.dumps({"choices": [{"index": 0, **choice}], "usage": usage}).encode())


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    monkeypatch.setenv(VARIABLE, KEY)
    without_proxy(monkeypatch)
    with serving(lambda content: f"answer to {content}") as served:
        yield served


def place(chat: Chat, **own: object) -> Endpoint:
    made = Endpoint(chat.url, MODEL, key_variable=VARIABLE, concurrency=4, timeout=LONGEST, max_retries=2)
    return replace(made, **own)  # type: ignore[arg-type]


def questions(num: int = NUM) -> list[Question]:
    return [Question(f"q{n}", [Message(role="user", content=f"question {n}")]) for n in range(num)]


def asked(chat: Chat, folder: Path, *, num: int = NUM, **own: object) -> Answers:
    return ask(place(chat, **own), questions(num), path=folder / "out.jsonl", max_tokens=20)


def texts(answers: Answers) -> dict[str, str]:
    return {id: reply.text for id, reply in answers.replies.items()}


ALL = {f"q{n}": f"answer to question {n}" for n in range(NUM)}


def test_each_question_gets_its_own_reply_and_tokens_and_cost_add_up(chat: Chat, tmp_path: Path) -> None:
    answers = asked(chat, tmp_path)
    assert texts(answers) == ALL
    counts = answers.counts(place(chat, price_in=2.0, price_out=8.0))
    assert counts["prompt_tokens"] == 10 * NUM and counts["completion_tokens"] == 5 * NUM
    assert counts["cost"] == pytest.approx((10 * NUM * 2 + 5 * NUM * 8) / 1e6)
    assert "cost" not in answers.counts(place(chat))


def test_no_more_are_asked_at_once_than_allowed(chat: Chat, tmp_path: Path) -> None:
    three = threading.Barrier(3)
    chat.answer = lambda content: f"{content}, one of three: {three.wait(timeout=LONGEST)}"
    asked(chat, tmp_path, concurrency=3)
    assert chat.most_at_once == 3


@pytest.mark.parametrize(
    "failure", [status(429), status(500), status(503), half], ids=["429", "500", "503", "half"]
)
def test_what_passes_is_tried_again(failure: Callable[[Handler], None], chat: Chat, tmp_path: Path) -> None:
    chat.failures = [failure, failure]
    assert texts(asked(chat, tmp_path, concurrency=1)) == ALL
    assert len(chat.requests) == NUM + 2


def test_a_stalled_request_is_tried_again(chat: Chat, tmp_path: Path) -> None:
    chat.failures = [stall]
    assert texts(asked(chat, tmp_path, num=2, timeout=PATIENCE)) == {id: ALL[id] for id in ("q0", "q1")}
    assert len(chat.requests) == 3


PARTS = {"role": "assistant", "content": [{"type": "text", "text": "Fine. Verdict: 1"}]}


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (status(500, "out of order"), "500: .*out of order"),
        (status(400, "too long"), "400: .*too long"),
        (status(403, "flagged"), "403: .*flagged"),
        (garbage, "not a reply of this API"),
        (page, "not a model's reply: <html>busy"),
        (other_json, "not a model's reply: no message"),
        (half, "connection lost"),
        (stall, "no reply within"),
        (lambda handler: handler.say("", finish_reason="error"), "not a model's reply: ended by error"),
        (lambda handler: handler.say(None, finish_reason="abort"), "not a model's reply: ended by abort"),
        (lambda handler: choose(handler, message=PARTS, finish_reason="stop"), "content that is no text"),
        (lambda handler: choose(handler, message="Fine.", finish_reason="stop"), "no message"),
        (lambda handler: choose(handler, text="Fine.", finish_reason="stop"), "no message"),
        (lambda handler: choose(handler, text="Fine.", finish_reason="length"), "no message"),
        (lambda handler: choose(handler, text="Fine.", finish_reason="end_turn"), "no message"),
        (lambda handler: choose(handler, finish_reason="stop"), "no message"),
    ],
    ids=[
        *("500", "400", "403", "garbage", "page", "other", "half", "stall", "error", "abort"),
        *("parts", "bare", "text", "text cut short", "text otherwise ended", "neither"),
    ],
)
def test_a_request_that_fails_for_good_is_named_and_the_others_go_on(
    failure: Callable[[Handler], None], reason: str, chat: Chat, tmp_path: Path
) -> None:
    chat.failures = [failure]
    own = {"timeout": PATIENCE} if failure is stall else {}
    answers = asked(chat, tmp_path, num=3, concurrency=1, max_retries=0, **own)
    assert texts(answers) == {id: ALL[id] for id in ("q1", "q2")}
    assert list(answers.failed) == ["q0"]
    assert re.search(reason, answers.failed["q0"])
    # Started again, it asks for what is missing and nothing else.
    before = len(chat.requests)
    assert texts(asked(chat, tmp_path, num=3)) == {id: ALL[id] for id in ("q0", "q1", "q2")}
    assert [request["messages"][0]["content"] for request in chat.requests[before:]] == ["question 0"]


def test_a_reply_that_drips_is_given_up(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: Handler) -> None:
        handler.send(200, b"", length=1000)
        while not handler.chat.closing.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    monkeypatch.setattr(endpoints, "LONGEST_PAUSE", 0.0)
    chat.failures = [drip]
    answers = asked(chat, tmp_path, num=1, max_retries=0, timeout=0.3)  # it is never whole
    assert "no reply within" in answers.failed["q0"]


def test_a_reply_cut_short_by_its_length_is_not_finished(chat: Chat, tmp_path: Path) -> None:
    chat.failures = [lambda handler: handler.say("so far", finish_reason="length")]
    replies = asked(chat, tmp_path, num=2, concurrency=1).replies
    assert (replies["q0"].text, replies["q0"].finished, replies["q1"].finished) == ("so far", False, True)


def filtered(handler: Handler) -> None:
    """A filter's word, and no message at all."""
    choose(handler, finish_reason="content_filter")


@pytest.mark.invariant("A reply without text is kept, paid for and unread, and not asked for again.")
@pytest.mark.parametrize(
    ("silent", "ended"),
    [
        (lambda handler: handler.say(""), "stop"),
        (lambda handler: handler.say(" \n"), "stop"),
        (lambda handler: handler.say(None), "stop"),
        (lambda handler: handler.say(None, refusal="I will not."), "stop"),
        (lambda handler: handler.say(None, reasoning_content="Well", finish_reason="length"), "length"),
        (lambda handler: handler.say("", finish_reason="content_filter"), "content_filter"),
        (lambda handler: handler.say("", finish_reason=None), ""),
        (filtered, "content_filter"),
    ],
    ids=["empty", "blank", "null", "refusal", "reasoning", "filter", "unsaid", "no message"],
)
def test_a_reply_without_text_is_kept_paid_for_and_not_asked_for_again(
    silent: Callable[[Handler], None], ended: str, chat: Chat, tmp_path: Path
) -> None:
    """Also where the next sample might have text: asking until it does would choose among the model's replies."""
    chat.failures = [silent]

    def draw() -> Answers:
        path = tmp_path / "out.jsonl"
        return ask(place(chat, concurrency=1), questions(2), path=path, max_tokens=20, temperature=1.0)

    answers = draw()
    reply = answers.replies["q0"]
    assert not reply.text.strip() and reply.ended == ended and answers.failed == {}
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 5)
    assert answers.counts(place(chat))["completion_tokens"] == 5 * 2
    again = draw()
    assert again.replies == answers.replies and again.asked == 0 and len(chat.requests) == 2


def test_a_model_that_says_nothing_is_asked_to_the_end(chat: Chat, tmp_path: Path) -> None:
    """Its server is there, and each reply is one."""
    chat.answer = lambda content: ""
    answers = asked(chat, tmp_path, num=2 * GIVE_UP_AFTER)
    assert len(answers.replies) == 2 * GIVE_UP_AFTER and answers.failed == {}


@pytest.mark.parametrize("reason", sorted(BY_ITSELF))
def test_every_servers_word_for_an_end_is_one(reason: str, chat: Chat, tmp_path: Path) -> None:
    chat.failures = [lambda handler: handler.say("all of it", finish_reason=reason)]
    reply = asked(chat, tmp_path, num=1).replies["q0"]
    assert (reply.finished, reply.is_cut_short, reply.ended) == (True, False, reason)


def test_replies_kept_before_their_end_was_recorded_are_read(chat: Chat, tmp_path: Path) -> None:
    chat.failures = [lambda handler: handler.say("so far", finish_reason="length")]
    asked(chat, tmp_path, num=1)
    record = tmp_path / "out.jsonl.replies"
    _, _, line = record.read_text().partition(" ")  # nor did lines have a digest then
    record.write_text(line.replace(', "ended": "length"', ""))
    again = asked(chat, tmp_path, num=1)
    assert again.asked == 0 and again.replies["q0"].ended is None and again.replies["q0"].is_cut_short


@pytest.mark.invariant("A server is asked nothing twice, and its key is shown nowhere.")
def test_nothing_is_asked_twice_and_other_settings_are_another_question(chat: Chat, tmp_path: Path) -> None:
    asked(chat, tmp_path)
    again = asked(chat, tmp_path)
    assert texts(again) == ALL and again.asked == 0 and len(chat.requests) == NUM
    other = ask(place(chat), questions(), path=tmp_path / "out.jsonl", max_tokens=21, temperature=0.0)
    assert other.asked == NUM
    assert chat.requests[-1]["temperature"] == 0 and "temperature" not in chat.requests[0]


def test_a_line_cut_short_by_a_kill_is_asked_for_again(chat: Chat, tmp_path: Path) -> None:
    asked(chat, tmp_path)
    record = tmp_path / "out.jsonl.replies"
    record.write_bytes(record.read_bytes()[:-20])
    assert texts(asked(chat, tmp_path)) == ALL
    assert len(chat.requests) == NUM + 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what runs in the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_replies_until_an_interruption_are_kept(chat: Chat, tmp_path: Path) -> None:
    answer = chat.answer

    def interrupt(content: str) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        chat.closing.wait(LONGEST)
        return "too late"

    chat.answer = lambda content: interrupt(content) if content == "question 5" else answer(content)
    with pytest.raises(KeyboardInterrupt):
        asked(chat, tmp_path, concurrency=1)
    chat.answer = answer
    assert texts(asked(chat, tmp_path)) == ALL
    assert len(chat.requests) == NUM + 1


def test_a_server_that_is_gone_is_not_waited_for(chat: Chat, tmp_path: Path) -> None:
    chat.failures = [status(500)] * 1000
    with pytest.raises(UserError, match=r"16 requests failed.*500.*kept"):
        asked(chat, tmp_path, num=100, max_retries=0, concurrency=1)
    assert len(chat.requests) < 20


def test_a_wrong_model_ends_it_at_once(chat: Chat, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{chat.url}, model 'unheard-of': the server knows no such model"):
        asked(chat, tmp_path, model="unheard-of", concurrency=1)
    assert len(chat.requests) <= AT_ONCE


def test_a_model_that_is_refused_with_400_ends_it_too(chat: Chat, tmp_path: Path) -> None:
    chat.failures = [lambda handler: handler.refuse(400, "no such model", code="model_not_found")]
    with pytest.raises(UserError, match="knows no such model"):
        asked(chat, tmp_path, concurrency=1)


def test_a_wrong_key_ends_it_at_once_and_is_shown_nowhere(
    chat: Chat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    wrong = "sk-" + "theWrongSecret"
    monkeypatch.setenv(VARIABLE, wrong)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as refusal:
        asked(chat, tmp_path, concurrency=1)
    assert chat.url in str(refusal.value) and MODEL in str(refusal.value) and VARIABLE in str(refusal.value)
    assert len(chat.requests) <= AT_ONCE
    assert_nowhere(
        wrong, tmp_path, str(refusal.value), repr(refusal.value.__cause__), caplog.text, *capfd.readouterr()
    )


@pytest.mark.invariant("A server is asked nothing twice, and its key is shown nowhere.")
def test_the_key_is_nowhere_even_if_the_server_repeats_it(
    chat: Chat, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    chat.failures = [
        status(400, f"bad request, signed {KEY}"),
        lambda handler: handler.say(f"your key is {KEY}"),
    ]
    with caplog.at_level(logging.DEBUG):
        answers = asked(chat, tmp_path, num=4, concurrency=1)
    assert "[key]" in answers.failed["q0"] and "[key]" in answers.replies["q1"].text
    assert caplog.text, "the client logs its requests"
    assert_nowhere(KEY, tmp_path, repr(answers), caplog.text, *capfd.readouterr())


@pytest.mark.parametrize("word", ["to", "anything", "whatever", "unconditionally"])
def test_a_word_in_a_keys_place_is_not_struck_out_of_replies(
    word: str, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that ask for no key are given any word, which a reply may hold by right."""
    monkeypatch.setattr("server.KEY", word)
    monkeypatch.setenv(VARIABLE, word)
    chat.answer = lambda content: f"{word} but that"
    assert set(texts(asked(chat, tmp_path)).values()) == {f"{word} but that"}


@pytest.mark.parametrize(
    ("key", "is_struck"),
    [
        ("a1b2c3d4e5f6a7b8", True),
        ("sk-allSmallAndLarge", True),
        ("a1b2c3d4e5f6a7b", False),
        ("incomprehensibilities", False),
        ("1234567890123456", False),
    ],
)
def test_a_text_is_kept_without_what_looks_like_a_secret(key: str, is_struck: bool) -> None:
    assert kept(key, f"so {key}.") == ("so [key]." if is_struck else f"so {key}.")


def test_half_a_surrogate_pair_ends_nothing(chat: Chat, tmp_path: Path) -> None:
    """JSON can say it, and a file in UTF-8 cannot."""
    chat.failures = [
        status(400, "half \ud83d of it"),
        lambda handler: handler.say("half \ud83d of \U0001f600"),
    ]
    answers = asked(chat, tmp_path, num=2, concurrency=1)
    assert "half ? of it" in answers.failed["q0"]
    assert answers.replies["q1"].text == "half ? of \U0001f600"
    assert asked(chat, tmp_path, num=2).replies["q1"] == answers.replies["q1"]


def assert_nowhere(secret: str, folder: Path, *shown: str) -> None:
    files = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in (*files, *shown) if secret in text]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"base_url": "https://me:hidden@host/v1"}, "base_url of host: no user, password, query or fragment"),
        (
            {"base_url": "https://host/v1?key=hidden"},
            "base_url of host: no user, password, query or fragment",
        ),
        ({"base_url": "https://host/v1#hidden"}, "base_url of host: no user, password, query or fragment"),
        ({"base_url": "http://[bad/v1"}, "give an address such as"),
        ({"base_url": "http://host:abc/v1"}, "give an address such as"),
        ({"base_url": "localhost:8000"}, "give an address such as"),
        ({"key_variable": "ALLO_TEST_NO_KEY"}, "ALLO_TEST_NO_KEY is not set"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_asked(
    own: dict[str, str], said: str, chat: Chat
) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        check_endpoint(place(chat, **own))
    assert "hidden" not in str(refusal.value)
