"""Completions from servers: every one arrives once, whatever servers do."""

import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.artifacts import ResumableLines
from allo.files.records import Message
from allo.sampling.replies import Asked, seed_of
from model_server import STARTING_MODEL, ModelServer, from_seed
from served_setup import (
    NUM,
    PLACES,
    SEED,
    SETTINGS,
    VARIABLE,
    N,
    after,
    change,
    expected,
    prompts,
    recorded,
    sampled,
)
from server import (
    KEY,
    LONGEST,
    PATIENCE,
    Handler,
    garbage,
    half,
    page,
    stall,
    status,
)

pytestmark = pytest.mark.usefixtures("quick")


def test_a_request_says_the_prompts_own_words_and_every_setting(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, stop=["\n\n"], extra_body={"top_k": 0})
    sampled(servers[:1], tmp_path, [Asked("a", "Tom has 7 pens.\n", 7)], settings=settings)
    (asked,) = servers[0].asked
    assert asked == {
        "path": "/v1/completions",
        "model": STARTING_MODEL,
        "prompt": "Tom has 7 pens.\n",
        "n": N,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 20,
        "seed": seed_of(SEED, "a", 0),
        "stop": ["\n\n"],
        "top_k": 0,
    }


def test_messages_go_to_chat(servers: list[ModelServer], tmp_path: Path) -> None:
    messages = [Message(role="system", content="Be short."), Message(role="user", content="How many?")]
    run = sampled(servers[:1], tmp_path, [Asked("a", messages, 9)])
    (asked,) = servers[0].asked
    assert asked["path"] == "/v1/chat/completions" and asked["messages"] == messages and "stop" not in asked
    assert run.texts["a", 2] == f"How many? -> {seed_of(SEED, 'a', 0) + 2}"


@pytest.mark.invariant(
    "Every completion arrives once, whatever fails, and depends on neither servers nor order, where the servers give as many a request."
)
@pytest.mark.parametrize(("num_servers", "concurrency", "step"), [(1, 1, 1), (2, 4, 1), (2, 3, -1)])
def test_completions_depend_on_neither_servers_nor_order(
    servers: list[ModelServer], tmp_path: Path, num_servers: int, concurrency: int, step: int
) -> None:
    run = sampled(servers[:num_servers], tmp_path, prompts()[::step], concurrency=concurrency)
    assert run.texts == expected()


def test_every_completion_has_a_seed_of_its_own() -> None:
    seeds = [
        seed_of(seed, f"p{prompt}", index) for seed in (0, 1) for prompt in range(50) for index in range(10)
    ]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)


def test_each_request_goes_to_the_server_with_the_fewest_open(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    everyone = threading.Barrier(8, timeout=LONGEST)
    for server in servers:
        server.choose = after(everyone.wait)
    sampled(servers, tmp_path, prompts(8), concurrency=16)
    assert [server.most_at_once for server in servers] == [4, 4]


def test_a_faster_server_gets_more(servers: list[ModelServer], tmp_path: Path) -> None:
    slow, fast = servers
    done = threading.Event()
    slow.choose = after(lambda: done.wait(LONGEST))
    fast.choose = after(lambda: done.set() if len(fast.asked) == 37 else None)
    sampled(servers, tmp_path, prompts(40), concurrency=3)
    assert (len(slow.asked), len(fast.asked)) == (3, 37)


@pytest.mark.parametrize("given", [1, 3])
def test_a_server_that_gives_fewer_completions_is_asked_for_the_rest(
    servers: list[ModelServer], tmp_path: Path, given: int
) -> None:
    for server in servers:
        server.choose = lambda asked: [
            (from_seed(asked, index), "stop") for index in range(min(given, asked["n"]))
        ]
    run = sampled(servers, tmp_path)
    assert set(run.rows) == PLACES and len(set(run.texts.values())) == NUM * N
    assert run.counts["requests"] == NUM * -(-N // given)


def test_a_server_that_gives_more_is_taken_by_its_word_no_further(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    servers[0].choose = lambda asked: [(from_seed(asked, index), "stop") for index in range(asked["n"] + 2)]
    assert sampled(servers[:1], tmp_path).texts == expected()


@pytest.mark.invariant(
    "Every completion arrives once, whatever fails, and depends on neither servers nor order, where the servers give as many a request."
)
@pytest.mark.parametrize(
    "failure",
    [status(429), status(500), status(503), garbage, page, half, stall],
    ids=["429", "500", "503", "garbage", "page", "half", "stall"],
)
def test_what_fails_is_asked_again_and_nothing_arrives_twice(
    servers: list[ModelServer], tmp_path: Path, failure: Callable[[Handler], None]
) -> None:
    servers[0].failures = [failure] * 3
    servers[1].failures = [failure]
    own = {"timeout": PATIENCE} if failure is stall else {}
    run = sampled(servers, tmp_path, max_retries=4, **own)  # one prompt may meet all four
    assert run.texts == expected()
    assert run.counts["retries"] == 4 and run.counts["requests"] == NUM + 4


def test_a_name_that_is_answered_for_but_not_listed_is_told(
    servers: list[ModelServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers[0].lists = "another"
    sampled(servers[:1], tmp_path)
    assert f"answers for the model '{STARTING_MODEL}', but lists another" in capsys.readouterr().err


@pytest.mark.parametrize(("slots", "parts"), [(1000, [4]), (3, [2, 2]), (1, [1, 1, 1, 1])])
def test_a_server_is_asked_for_as_many_at_once_as_it_gives(
    servers: list[ModelServer], tmp_path: Path, slots: int, parts: list[int]
) -> None:
    servers[0].slots = slots
    run = sampled(servers[:1], tmp_path, prompts(5), concurrency=1)
    assert set(run.rows) == {place for place in PLACES if place[0] < "p5"}
    assert [asked["n"] for asked in servers[0].asked] == parts * 5, (
        "what it refuses is found before the first prompt"
    )
    assert run.texts["p0", 3] == f"prompt 0 -> {seed_of(SEED, 'p0', 4 - parts[-1]) + parts[-1] - 1}"


def test_a_server_that_is_started_anew_with_fewer_slots_is_asked_for_fewer(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    change(servers[0], 3, slots=2)
    assert set(sampled(servers[:1], tmp_path, concurrency=2, max_retries=0).rows) == PLACES


@pytest.mark.parametrize(("room", "told"), [(22, True), (23, False), (None, False)])
def test_a_server_without_room_for_the_longest_completion_is_told(
    servers: list[ModelServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    room: int | None,
    told: bool,
) -> None:
    servers[0].room = room  # prompts have 3 tokens, completions at most 20
    sampled(servers[:1], tmp_path)
    said = f"{servers[0].url} has room for 22 tokens of a prompt and its completion; the longest here may have 23"
    assert (said in capsys.readouterr().err) == told


@pytest.mark.parametrize(("lists", "told"), [(None, ""), ("another", "has room for 10 tokens")])
def test_the_room_is_that_of_the_model_that_is_asked_for(
    servers: list[ModelServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lists: str | None,
    told: str,
) -> None:
    """If the model is not listed, the room of any listed one counts."""
    servers[0].lists, servers[0].room, servers[0].others = lists, 23, {"small": 10}
    sampled(servers[:1], tmp_path)
    said = capsys.readouterr().err
    assert told in said and ("has room for" in said) == bool(told)


def test_completions_whose_thoughts_the_server_takes_out_are_refused(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    servers[0].thought, servers[0].choose = "Seven?", lambda asked: [("", "length")] * asked["n"]
    with pytest.raises(UserError) as refusal:
        sampled(servers[:1], tmp_path, [Asked("a", [Message(role="user", content="How many?")], 9)])
    assert str(refusal.value) == (
        f"{servers[0].url}, model '{STARTING_MODEL}': the server gives thoughts apart from the text, and completions are "
        "wanted whole: set sample.api to completions, or start it without such a parser."
    )
    assert [asked["n"] for asked in servers[0].requests] == [N], "it refused no number"


def test_texts_need_a_server_of_texts(servers: list[ModelServer], tmp_path: Path) -> None:
    servers[0].paths = ("/v1/chat/completions",)
    with pytest.raises(UserError, match=r"404.*texts and go to /completions.*chat: true"):
        sampled(servers[:1], tmp_path)


def test_nothing_is_asked_twice(servers: list[ModelServer], tmp_path: Path) -> None:
    sampled(servers, tmp_path)
    part = next(tmp_path.glob("out*"))
    part.write_bytes(part.read_bytes()[:-20])  # a line cut short by a kill
    before = len(servers[0].asked + servers[1].asked)
    run = sampled(servers, tmp_path)
    assert run.texts == expected()
    assert len(servers[0].asked + servers[1].asked) == before + 1
    for server in servers:
        server.dead = True
    assert sampled(servers, tmp_path).texts == expected(), "what is complete needs no server"


def test_a_prompt_that_was_half_done_goes_on_at_its_place(servers: list[ModelServer], tmp_path: Path) -> None:
    lines = ResumableLines(tmp_path / "out")
    lines.append([{"prompt_id": "p0", "index": 0, "text": "so far", "finished": True, "num_tokens": 2}])
    run = sampled(servers, tmp_path)
    assert set(run.rows) == PLACES and run.texts["p0", 0] == "so far"
    assert run.texts["p0", 1] == f"prompt 0 -> {seed_of(SEED, 'p0', 1)}"


def test_a_request_refused_for_good_is_named_and_the_others_are_kept(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    servers[0].failures = [status(400, "too long")]
    with pytest.raises(UserError, match=r"1 prompts lack completions; prompt p0: 400: .*too long"):
        sampled(servers[:1], tmp_path, concurrency=1)
    assert set(recorded(tmp_path)) == {place for place in PLACES if place[0] != "p0"}


@pytest.mark.parametrize(
    ("text", "reason", "kept", "finished"),
    [
        ("seven", "stop", "seven", True),
        ("", "stop", "", True),
        ("seven and", "length", "seven and", False),
        ("seven\n\nNext", "length", "seven", True),
        ("seven\n\n", "stop", "seven", True),
        ("seven", "eos_token", "seven", True),
    ],
)
def test_a_completion_ends_before_a_stop_string_and_knows_whether_it_ended(
    servers: list[ModelServer], tmp_path: Path, text: str, reason: str, kept: str, finished: bool
) -> None:
    servers[0].choose = lambda asked: [(text, reason)] * asked["n"]
    run = sampled(servers[:1], tmp_path, prompts(1), settings=replace(SETTINGS, stop=["\n\n"]))
    assert {(row["text"], row["finished"]) for row in run.rows.values()} == {(kept, finished)}


def test_what_a_filter_ended_is_no_completion(servers: list[ModelServer], tmp_path: Path) -> None:
    answer = servers[0].choose

    def filtered(asked: dict[str, Any]) -> list[tuple[str, str]]:
        choices = answer(asked)
        return [("", "content_filter"), *choices[1:]] if len(servers[0].asked) == 1 else choices

    servers[0].choose = filtered
    run = sampled(servers[:1], tmp_path, prompts(1))
    assert set(run.rows) == {place for place in PLACES if place[0] == "p0"} and "" not in run.texts.values()


@pytest.mark.parametrize(("num_generations", "usage", "tokens"), [(1, True, 7), (1, False, 6), (2, True, 6)])
def test_tokens_are_the_servers_count_of_one_completion_and_else_our_own(
    servers: list[ModelServer], tmp_path: Path, num_generations: int, usage: bool, tokens: int
) -> None:
    servers[0].choose = lambda asked: [("seven", "stop")] * asked["n"]
    servers[0].usage = usage
    settings = replace(SETTINGS, num_generations=num_generations)
    run = sampled(servers[:1], tmp_path, settings=settings)
    assert {row["num_tokens"] for row in run.rows.values()} == {tokens}
    assert run.counts["tokens"] == tokens * NUM * num_generations


def test_prompts_that_the_server_reads_otherwise_are_counted(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    asked = [Asked(f"p{number}", f"prompt {number}", num_tokens=3 + (number < 2)) for number in range(NUM)]
    assert sampled(servers, tmp_path, asked).counts["prompts_read_otherwise"] == 2


def test_tokens_and_prompts_read_otherwise_are_of_every_process(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    asked = [Asked(f"p{number}", f"prompt {number}", num_tokens=3 + (number < 2)) for number in range(NUM)]
    whole = sampled(servers, tmp_path, asked).counts
    assert whole["tokens"] > 0 and whole["prompts_read_otherwise"] == 2
    part = next(tmp_path.glob("out*"))
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:-3]))
    resumed = sampled(servers, tmp_path, asked).counts
    again = sampled(servers, tmp_path, asked).counts  # nothing is left to ask for
    assert (resumed["requests"], again["requests"]) == (3, 0)
    for counts in (resumed, again):
        assert {name: counts[name] for name in ("tokens", "prompts_read_otherwise")} == {
            name: whole[name] for name in ("tokens", "prompts_read_otherwise")
        }


def test_a_server_that_does_not_sample_is_told_once(
    servers: list[ModelServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers[0].choose = lambda asked: [("seven", "stop")] * asked["n"]
    sampled(servers[:1], tmp_path)
    assert capsys.readouterr().err.count("do the servers sample?") == 1
    sampled(servers[1:], tmp_path / "..")
    assert "do the servers sample?" not in capsys.readouterr().err


def test_the_key_is_sent_and_is_nowhere_else(
    servers: list[ModelServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    servers[0].key = KEY
    servers[0].choose = lambda asked: [(f"your key is {KEY}", "stop")] * asked["n"]
    servers[0].failures = [status(500, f"signed {KEY}"), status(400, f"signed {KEY}")]
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"signed \[key\]") as refusal:
        sampled(servers[:1], tmp_path, concurrency=1)
    assert any("[key]" in row["text"] for row in recorded(tmp_path).values())
    shown = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert caplog.text, "the client logs its requests"
    assert not [
        text for text in (*shown, str(refusal.value), caplog.text, *capsys.readouterr()) if KEY in text
    ]


def test_a_word_in_the_keys_place_stays_in_completions(
    servers: list[ModelServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "anything")
    servers[0].choose = lambda asked: [("anything but seven", "stop")] * asked["n"]
    assert set(sampled(servers[:1], tmp_path).texts.values()) == {"anything but seven"}


def test_half_a_surrogate_pair_ends_nothing(servers: list[ModelServer], tmp_path: Path) -> None:
    servers[0].choose = lambda asked: [("half \ud83d of \U0001f600", "stop")] * asked["n"]
    assert set(sampled(servers[:1], tmp_path).texts.values()) == {"half ? of \U0001f600"}


def test_a_missing_key_is_asked_for_by_its_variables_name(servers: list[ModelServer], tmp_path: Path) -> None:
    servers[0].key = KEY
    with pytest.raises(UserError, match=rf"refuses the key \(401\).*{VARIABLE}\.$"):
        sampled(servers[:1], tmp_path)


def test_what_was_answered_is_valid_json_of_completions(servers: list[ModelServer], tmp_path: Path) -> None:
    sampled(servers, tmp_path)
    lines = next(tmp_path.glob("out*")).read_text().splitlines()
    fields = {"prompt_id", "index", "text", "finished", "num_tokens", "token_ids"}
    fields |= {"prompt_tokens", "stop", "is_guessed"}
    assert all(row.keys() == fields for line in lines for row in json.loads(line.partition(" ")[2]))
    assert not re.search("base_url|127.0.0.1", "".join(lines))
