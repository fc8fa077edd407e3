"""Redirects: the key and the prompts stay at the server whose address was given."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from allo.errors import UserError
from allo.files.artifacts import ResumableLines
from allo.files.records import Message
from allo.sampling.endpoint import Endpoint
from allo.sampling.questions import Question, ask
from allo.sampling.replies import Asked, RequestSettings
from allo.sampling.served import complete
from hostile import sends
from server import KEY, LONGEST, MODEL, Chat, Handler, serving, without_proxy

VARIABLE = "ALLO_TEST_KEY"


class Noting(Handler):
    """Answers at every path, and notes whatever reaches it."""

    def do_GET(self) -> None:  # noqa: N802, http.server's name
        with contextlib.suppress(ConnectionError):
            self.chat.requests.append(
                {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}
            )
            self.refuse(404, "no list")

    def reply(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.chat.requests.append(
            {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}
        )
        failure = self.chat.failures.pop(0) if self.chat.failures else None
        if failure is None:
            self.say("Fine.")
        else:
            failure(self)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Chat, Chat]]:
    """The server that was named, and another one."""
    monkeypatch.setenv(VARIABLE, KEY)
    without_proxy(monkeypatch)
    with serving(str, kind=Noting) as named, serving(str, kind=Noting) as other:
        yield named, other


def to(location: str, status: int = 307) -> Callable[[Handler], None]:
    return sends(b"", status=status, Location=location)


def asked(chat: Chat, folder: Path) -> str:
    place = Endpoint(chat.url, MODEL, VARIABLE, concurrency=1, timeout=LONGEST, max_retries=0)
    question = Question("q0", [Message(role="user", content="a secret prompt")])
    answers = ask(place, [question], path=folder / "out", max_tokens=5)
    return answers.replies["q0"].text if answers.replies else answers.failed["q0"]


def elsewhere(other: Chat) -> list[str]:
    """Addresses that are not the named server's."""
    port = other.url.rsplit(":", 1)[1].split("/")[0]
    return [
        f"{other.url}/chat/completions",
        f"//127.0.0.1:{port}/v1/chat/completions",
        f"http://localhost:{port}/v1",
        f"http://user:word@127.0.0.1:{port}/v1",
        f"https://127.0.0.1:{port}/v1",
        "http://127.0.0.1/v1",
        "http://other.example/v1",
        "http://127.0.0.1.other.example/v1",
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("status", [307, 301, 308])
def test_a_redirect_to_another_host_port_or_scheme_is_refused(
    status: int, number: int, two: tuple[Chat, Chat], tmp_path: Path
) -> None:
    named, other = two
    named.failures = [to(elsewhere(other)[number], status)]
    with pytest.raises(UserError, match=rf"redirects \({status}\) to another one, https?://") as refusal:
        asked(named, tmp_path)
    assert other.requests == [] and len(named.requests) == 1
    assert named.url in str(refusal.value) and "give its address" in str(refusal.value)
    assert "word" not in str(refusal.value)


@pytest.mark.parametrize("scheme", ["https://127.0.0.1", "HTTPS://127.0.0.1", "ftp://127.0.0.1"])
def test_another_scheme_of_the_same_place_is_another_server(
    scheme: str, two: tuple[Chat, Chat], tmp_path: Path
) -> None:
    named, _ = two
    named.failures = [to(f"{scheme}:{named.url.rsplit(':', 1)[1]}/chat/completions")]
    with pytest.raises(UserError, match="another one"):
        asked(named, tmp_path)
    assert len(named.requests) == 1


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("location", ["/v2/chat", "?again", "{url}/elsewhere", "{URL}/elsewhere"])
def test_a_redirect_within_the_server_is_followed_with_the_question(
    location: str, status: int, two: tuple[Chat, Chat], tmp_path: Path
) -> None:
    named, other = two
    there = location.format(url=named.url, URL=named.url.replace("http", "HTTP"))
    named.failures = [to(there, status)]
    assert asked(named, tmp_path) == "Fine."
    assert [request["headers"]["authorization"] for request in named.requests] == [f"Bearer {KEY}"] * 2
    assert other.requests == []


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_lose_the_question_is_said(
    status: int, two: tuple[Chat, Chat], tmp_path: Path
) -> None:
    named, _ = two
    named.failures = [to("/v2/chat", status)]
    with pytest.raises(UserError, match="to /v2/chat, where the prompts would not be sent again"):
        asked(named, tmp_path)
    assert len(named.requests) == 1


def test_a_redirect_in_a_circle_ends(two: tuple[Chat, Chat], tmp_path: Path) -> None:
    named, _ = two
    named.failures = [to("/v1/chat/completions")] * 100
    with pytest.raises(UserError, match="redirected 5 times in a row"):
        asked(named, tmp_path)
    assert len(named.requests) == 5


def test_a_redirect_elsewhere_after_one_within_is_refused(two: tuple[Chat, Chat], tmp_path: Path) -> None:
    named, other = two
    named.failures = [to("/v2"), to(other.url)]
    with pytest.raises(UserError, match="another one"):
        asked(named, tmp_path)
    assert other.requests == []


@pytest.mark.parametrize(
    "location", ["http://[", "http://host:99999999/", "\x1b]0;x\x07", "http://", "a" * 5000, "²"]
)
def test_a_location_that_is_none_is_a_reason(location: str, two: tuple[Chat, Chat], tmp_path: Path) -> None:
    named, other = two
    named.failures = [to(location)]
    try:
        said = asked(named, tmp_path)
    except UserError as refusal:
        said = str(refusal)
    assert said and said.isprintable() and other.requests == []


def test_sampling_stays_at_its_server_too(two: tuple[Chat, Chat], tmp_path: Path) -> None:
    named, other = two
    named.failures = [to(f"{other.url}/completions")] * 100
    place = Endpoint(named.url, MODEL, VARIABLE, concurrency=1, timeout=LONGEST, max_retries=1)
    settings = RequestSettings(num_generations=1, temperature=0.7, top_p=1.0, max_new_tokens=5, seed=0)
    with pytest.raises(UserError, match="another one"):
        complete(
            [place],
            [Asked("p0", "a secret prompt", num_tokens=3)],
            settings,
            lines=ResumableLines(tmp_path / "out"),
            patience=0.1,
            advice="",
            num_tokens=len,
        )
    assert other.requests == []
