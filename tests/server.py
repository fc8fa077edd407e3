"""A chat server on this machine that speaks as much of OpenAI's API as the client uses, and fails when told to."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MODEL = "teacher"
KEY = "sk-" + "aSecretThatNobodySees"
PATIENCE = 2.0  # seconds until a stalled request is given up; a busy machine answers all else sooner
LONGEST = 60.0  # seconds that a test waits for what has to happen; it fails where it does not


@dataclass
class Chat:
    """`answer`: from the last message's content to the reply's text. `failures`: what to do with the next requests.

    `requests` has every request's body; `most_at_once` the largest number that were open together.
    """

    answer: Callable[[str], str]
    failures: list[Callable[["Handler"], None]] = field(default_factory=list)
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


def without_proxy(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Let no proxy stand before a server on this machine; unset further variables, too."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", *more):
        monkeypatch.delenv(name, raising=False)


def with_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses between attempts so short that a test can wait for them."""
    monkeypatch.setattr("allo.sampling.servers._FIRST_PAUSE", 0.05)
    monkeypatch.setattr("allo.sampling.attempts.FIRST_PAUSE", 0.01)


class Handler(BaseHTTPRequestHandler):
    chat: Chat
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep the server's own log out of the tests' output."""

    def send(
        self, status: int, body: bytes, *, length: int | None = None, kind: str = "application/json"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def say(self, text: str | None, *, finish_reason: str | None = "stop", **more: Any) -> None:
        message = {"role": "assistant", "content": text, **more}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL}
        self.send(200, json.dumps(reply | {"choices": [choice], "usage": usage}).encode())

    def refuse(self, status: int, message: str, **more: Any) -> None:
        self.send(status, json.dumps({"error": {"message": message, "type": "x", **more}}).encode())

    def do_POST(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that gave up
            self.reply()

    def reply(self) -> None:
        chat = self.chat
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat.lock:
            chat.requests.append(asked)
            chat.open += 1
            chat.most_at_once = max(chat.most_at_once, chat.open)
            failure = chat.failures.pop(0) if chat.failures else None
        try:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                self.refuse(401, f"Incorrect API key provided: {self.headers['Authorization']}")
            elif self.path != "/v1/chat/completions":
                self.refuse(404, "no such path")
            elif asked["model"] != MODEL:
                self.refuse(404, f"the model {asked['model']} does not exist", code="model_not_found")
            elif failure is not None:
                failure(self)
            else:
                self.say(chat.answer(asked["messages"][-1]["content"]))
        finally:
            with chat.lock:
                chat.open -= 1


def status(number: int, message: str = "try later") -> Callable[[Handler], None]:
    return lambda handler: handler.refuse(number, message)


def stall(handler: Handler) -> None:
    """Say nothing until the server closes."""
    handler.chat.closing.wait(30)
    handler.close_connection = True


def garbage(handler: Handler) -> None:
    handler.send(200, b"{ this is not JSON")


def page(handler: Handler) -> None:
    """Answer as a proxy does in the server's stead."""
    handler.send(200, b"<html>busy</html>", kind="text/html")


def other_json(handler: Handler) -> None:
    handler.send(200, b'{"choices": [{"message": null}]}')


def half(handler: Handler) -> None:
    """The connection breaks in the middle of the body."""
    handler.send(200, b'{"choices": [{"mess', length=4000)
    handler.close_connection = True


@contextlib.contextmanager
def serving(
    answer: Callable[[str], str],
    *,
    chat: Chat | None = None,
    kind: type[Handler] = Handler,
    port: int = 0,
) -> Iterator[Chat]:
    chat = chat or Chat(answer)
    handler = type("OwnHandler", (kind,), {"chat": chat})
    # Connections that may wait to be accepted: with http.server's own 5, the kernel resets some of many at once.
    kind_of_server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128})
    server = kind_of_server(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield chat
    finally:
        chat.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
