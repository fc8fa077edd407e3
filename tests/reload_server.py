"""A stand-in for a vLLM server that reloads its weights: the two development calls that our page makes."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from allo.weights.checkpoints import Checkpoint


@dataclass
class Reloading:
    """`weights` that a server holds; the `paths` that it was asked for; `fails`, the path that it refuses."""

    weights: dict[str, Tensor]
    url: str = ""
    paths: list[str] = field(default_factory=list)
    fails: str = ""


def read(folder: str | Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.stored}


class Handler(BaseHTTPRequestHandler):
    server_state: Reloading

    def log_message(self, *_: Any) -> None:
        """Keep the server's own log out of the tests' output."""

    def do_POST(self) -> None:
        state, path = self.server_state, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.paths.append(path)
        if path == state.fails:
            self.answer(500, {"error": "no weights there"})
        elif path == "/collective_rpc":
            asked = json.loads(body)
            if self.headers["Content-Type"] != "application/json" or asked["method"] != "reload_weights":
                self.answer(400, {"error": "no such method"})
                return
            state.weights = read(asked["kwargs"]["weights_path"])
            self.answer(200, {"results": [None]})
        else:
            self.answer(200 if path == "/reset_prefix_cache" else 404, {})

    def answer(self, status: int, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextlib.contextmanager
def reloading(folder: Path) -> Iterator[Reloading]:
    """Serve a model's folder on this machine while the context is open."""
    state = Reloading(read(folder))
    handler = type("OwnHandler", (Handler,), {"server_state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
