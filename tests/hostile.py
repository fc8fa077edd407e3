"""Ways in which a server lies, floods and misleads, for `server.serving` and `model_server`."""

import gzip
import zlib
from collections.abc import Callable
from typing import Any

from server import MODEL, Handler

Act = Callable[[Handler], None]


def completion(**changes: Any) -> dict[str, Any]:
    """A good reply, of which fields of the choice or of the usage are others."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [choice | {key: value for key, value in changes.items() if key in choice}],
        "usage": usage | {key: value for key, value in changes.items() if key in usage},
    }


def sends(body: bytes, *, status: int = 200, kind: str = "application/json", **headers: str) -> Act:
    def act(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def endless(start: bytes = b'{"a": "', *, status: int = 200, chunked: bool = False) -> Act:
    """A body that goes on as long as somebody reads it."""

    def act(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header(
            *(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(1 << 40)))
        )
        handler.end_headers()
        piece = b"x" * (1 << 16)
        framed = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(start), start) if chunked else start)
        while not handler.chat.closing.is_set():
            handler.wfile.write(framed)

    return act


def packed(packer: Callable[[bytes], bytes], coding: str, *, status: int = 200) -> Act:
    """A quarter of a gigabyte that was packed small, packed once more where it is still large."""
    body = packer(b'{"a": "' + b"x" * (1 << 28) + b'"}')
    return sends(body, status=status, Content_Encoding=coding)


def endless_headers(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers_sent = False  # type: ignore[attr-defined]
    handler.flush_headers()
    while not handler.chat.closing.is_set():
        handler.wfile.write(b"X-More: " + b"x" * 60_000 + b"\r\n")


FLOODS: dict[str, Callable[[], Act]] = {
    "without end": lambda: endless(),
    "without end, chunked": lambda: endless(chunked=True),
    "spaces without end": lambda: endless(b" "),
    "an error without end": lambda: endless(status=500),
    "a refusal without end": lambda: endless(status=400, chunked=True),
    "gzip": lambda: packed(lambda body: gzip.compress(body, 1), "gzip"),
    "deflate": lambda: packed(lambda body: zlib.compress(body, 1), "deflate"),
    "gzip twice": lambda: packed(lambda body: gzip.compress(gzip.compress(body, 1)), "gzip, gzip"),
    "gzip of an error": lambda: packed(lambda body: gzip.compress(body, 1), "gzip", status=503),
    "headers without end": lambda: endless_headers,
}


def busy(retry_after: str, status: int = 429) -> Act:
    return sends(b'{"error": {"message": "slow down"}}', status=status, Retry_After=retry_after)


# A reason, whether the text is finished and cut short by it, and whether it is one that we know.
ENDS: list[tuple[Any, bool, bool, bool]] = [
    *((reason, True, False, True) for reason in ("stop", "eos", "eos_token", "end_turn", "stop_sequence")),
    *((reason, True, False, True) for reason in ("STOP", "EOS", "COMPLETE", "FinishReason.STOP", " stop ")),
    *((reason, False, True, True) for reason in ("length", "max_tokens", "MAX_TOKENS", "max_new_tokens")),
    *((reason, False, False, True) for reason in ("content_filter", "SAFETY", "tool_calls")),
    *(
        (reason, False, False, False)
        for reason in ("finito", "eos!", "", ["stop"], {}, 2, 0, 1.5, True, None)
    ),
]
