"""Servers that are lost, come back, or turn out to have another model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from model_server import STARTING_MODEL, ModelServer, every_prompt
from served_setup import ADVICE, NUM, PLACES, N, after, change, expected, prompts, recorded, sampled
from server import (
    KEY,
    LONGEST,
    PATIENCE,
    Handler,
    stall,
    status,
)

pytestmark = pytest.mark.usefixtures("quick")


def once(happened: Callable[[], bool]) -> Callable[[dict[str, Any]], list[tuple[str, str]]]:
    """Answers as always, but requests for more than one token only once something happened, or `LONGEST` is over."""
    deadline = time.monotonic() + LONGEST

    def wait() -> None:
        while not happened() and time.monotonic() < deadline:
            time.sleep(0.005)

    return after(wait)


def test_a_throttled_server_is_waited_for_and_stays_in(servers: list[ModelServer], tmp_path: Path) -> None:
    servers[0].failures = [status(429)] * 8
    run = sampled(servers[:1], tmp_path, concurrency=2, max_retries=8)  # one prompt may meet them all
    assert run.texts == expected()
    assert len(servers[0].requests) == len(servers[0].asked) + 1, "it was not probed again"


@pytest.mark.invariant("A dead server's work is done elsewhere; back again, it is asked again.")
def test_a_server_that_dies_midway_is_left_out_and_the_other_does_its_work(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    dying, other = servers
    dying.choose, other.choose = until_death(dying, 3), once(lambda: sum(dying.probes) > 1)
    run = sampled(servers, tmp_path, prompts(30))
    assert run.texts == expected(30)
    assert len(other.asked) > len(dying.asked)
    assert other.most_at_once <= 4, "the work of two is not done at once"


def until_death(
    server: ModelServer, number: int, *, back_as: str | None = None
) -> Callable[[dict[str, Any]], list[tuple[str, str]]]:
    """Dies over its request number `number`, once; comes back, perhaps with another model, after it was probed."""
    answer, server.back_as = server.choose, back_as

    def choose(asked: dict[str, Any]) -> list[tuple[str, str]]:
        if len(server.asked) >= number and server.choose is choose:
            server.dead, server.choose = True, answer
        return answer(asked)

    return choose


@pytest.mark.invariant("A dead server's work is done elsewhere; back again, it is asked again.")
def test_a_server_that_comes_back_is_asked_again(
    servers: list[ModelServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back, other = servers
    back.choose = until_death(back, 3, back_as=STARTING_MODEL)
    other.choose = once(lambda: len(back.asked) > 10)  # it dies over the third, and some more fail
    assert sampled(servers, tmp_path, prompts(60), concurrency=2).texts == expected(60)
    assert len(back.asked) > 10
    said = capsys.readouterr().err
    assert f"{back.url}: left out" in said and f"{back.url}: back again" in said and other.url not in said


def test_a_server_that_comes_back_with_another_model_stays_out(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    changed, other = servers
    changed.choose = until_death(changed, 3, back_as="another")
    # Probed at the beginning, while it is dead, and twice with another model.
    other.choose = once(lambda: sum(changed.probes) > 3)
    assert sampled(servers, tmp_path, prompts(40), concurrency=1).texts == expected(40)
    assert changed.model == "another" and len(changed.asked) < 10
    assert changed.probes[1:] == sorted(changed.probes[1:]), "once left out, it is only probed"


OTHER = [
    {"model": "another"},
    {"key": KEY},
    {"model": "another", "refusal": status(400, "pinned to another")},
]


@pytest.mark.parametrize("changed", OTHER, ids=["404", "401", "400"])
def test_a_server_that_is_another_midway_is_left_out_and_the_other_goes_on(
    servers: list[ModelServer], tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any]
) -> None:
    change(servers[0], 3, **changed)
    servers[1].choose = once(lambda: sum(servers[0].probes) > 1)
    assert sampled(servers, tmp_path, prompts(30), concurrency=2).texts == expected(30)
    assert f"{servers[0].url}: left out for now: the server" in capsys.readouterr().err


@pytest.mark.parametrize("changed", OTHER, ids=["404", "401", "400"])
def test_when_all_are_others_midway_patience_ends_it_and_what_was_answered_is_kept(
    servers: list[ModelServer], tmp_path: Path, changed: dict[str, Any]
) -> None:
    change(servers[0], 3, **changed)
    said = rf"no server has answered for 0.2 s \({servers[0].url}: the server .*answered is kept\. {ADVICE}"
    with pytest.raises(UserError, match=said):
        sampled(servers[:1], tmp_path, prompts(30), concurrency=1, patience=0.2, max_retries=50)
    assert len(recorded(tmp_path)) == 3 * N


def test_all_dead_is_waited_out_and_then_gone_on_with_elsewhere(
    servers: list[ModelServer], tmp_path: Path
) -> None:
    first, second = servers
    first.choose = until_death(first, 6)
    with pytest.raises(UserError, match=rf"no server has answered for 0.2 s \({first.url}: .*{ADVICE}"):
        sampled([first], tmp_path, patience=0.2, max_retries=50)
    kept = recorded(tmp_path)
    assert 0 < len(kept) < NUM * N
    run = sampled([second], tmp_path)
    assert run.texts == expected()
    assert every_prompt([second]).total() == NUM - len(kept) // N
    assert run.counts["completions_per_second"] > 0


def test_no_server_at_the_beginning_says_what_to_serve(servers: list[ModelServer], tmp_path: Path) -> None:
    for server in servers:
        server.dead = True
    with pytest.raises(
        UserError, match=rf"no server answers \({servers[0].url}: .*; {servers[1].url}: .*{ADVICE}"
    ):
        sampled(servers, tmp_path)


def test_one_server_of_two_is_enough_to_begin(servers: list[ModelServer], tmp_path: Path) -> None:
    servers[0].dead = True
    assert sampled(servers, tmp_path).texts == expected()


@pytest.mark.parametrize(
    "refusal", [status(404, "no such model"), status(400, "pinned to another")], ids=["404", "400"]
)
def test_a_server_of_another_model_is_refused_before_anything_is_asked(
    servers: list[ModelServer], tmp_path: Path, refusal: Callable[[Handler], None]
) -> None:
    servers[1].model, servers[1].refusal = "another", refusal
    with pytest.raises(
        UserError, match=f"{servers[1].url}, model '{STARTING_MODEL}': .*It lists another"
    ) as refused:
        sampled(servers, tmp_path)
    assert not servers[0].asked and not servers[1].asked
    assert "/completions;" not in str(refused.value)


@pytest.mark.parametrize("probed", [status(503), stall], ids=["busy", "late"])
def test_a_busy_server_stays_in_after_a_request_that_was_at_fault(
    servers: list[ModelServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    probed: Callable[[Handler], None],
) -> None:
    """It has just answered: a probe that waits for its slots says nothing else of it."""

    def fault(handler: Handler) -> None:
        servers[0].model = "another"  # so that the probe, and it alone, is refused
        handler.refuse(400, "too long")

    def busy(handler: Handler) -> None:
        servers[0].model = STARTING_MODEL
        probed(handler)

    monkeypatch.setattr("allo.sampling.probe._TIMEOUT", PATIENCE)
    servers[0].failures, servers[0].refusal = [fault], busy
    with pytest.raises(UserError, match=r"1 prompts lack completions; prompt p0: 400: .*too long"):
        sampled(servers[:1], tmp_path, concurrency=1)
    assert set(recorded(tmp_path)) == {place for place in PLACES if place[0] != "p0"}
    assert "left out" not in capsys.readouterr().err


def test_servers_that_answer_only_probes_are_given_up(servers: list[ModelServer], tmp_path: Path) -> None:
    servers[0].failures = [status(500, "out of order")] * 1000
    with pytest.raises(UserError, match=r"16 requests failed one after the other.*500: .*out of order"):
        sampled(servers[:1], tmp_path, prompts(100), max_retries=0, concurrency=1)
