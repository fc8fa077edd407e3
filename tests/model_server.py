"""A server of one model on this machine, with as much of OpenAI's API as sampling uses; it fails and dies when told to."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from server import Chat, Handler, serving, status

STARTING_MODEL = "policy"


def from_seed(asked: dict[str, Any], index: int) -> str:
    """Return the text of a server that honours seeds: another one for each prompt, seed and choice."""
    prompt = asked.get("prompt") or asked["messages"][-1]["content"]
    return f"{prompt} -> {asked['seed'] + index}"


@dataclass
class ModelServer(Chat):
    """`lists`: the name in its list, where that is another. `refusal`: of any other model. `choose`: a request's choices, each a text with its finish_reason. `key`: None where it asks for none.

    As llama.cpp: `slots`: it refuses more choices a request; `room`: its list says so many tokens a slot; `others`: of
    its list, each with its room; `thought`: what it takes out of a chat message's text. `beside`: further fields of each choice, and of its message.

    `dead`: it answers nothing. `back_as`: None where it stays dead; else the model that it has after the first request
    for one token that it did not answer.

    `asked`: the bodies of all requests but those for one token, which only try whether it answers.
    """

    model: str = STARTING_MODEL
    lists: str | None = None
    key: str | None = None
    refusal: Callable[[Handler], None] = field(default_factory=lambda: status(404, "no such model"))
    paths: tuple[str, ...] = ("/v1/completions", "/v1/chat/completions")
    usage: bool = True
    dead: bool = False
    back_as: str | None = None
    slots: int = 1000
    room: int | None = None
    others: dict[str, int] = field(default_factory=dict)
    thought: str = ""
    beside: dict[str, Any] = field(default_factory=dict)
    choose: Callable[[dict[str, Any]], list[tuple[str, str]]] = lambda asked: [
        (from_seed(asked, index), "stop") for index in range(asked["n"])
    ]
    asked: list[dict[str, Any]] = field(default_factory=list)

    @property
    def probes(self) -> list[bool]:
        """Return, for every request, whether it asked for one token."""
        return [asked["max_tokens"] == 1 for asked in tuple(self.requests)]


class ModelHandler(Handler):
    chat: ModelServer

    def do_GET(self) -> None:  # noqa: N802, http.server's name
        with contextlib.suppress(ConnectionError):
            if self.chat.dead:
                self.close_connection = True
            else:
                rooms = {self.chat.lists or self.chat.model: self.chat.room, **self.chat.others}
                models = [
                    {"id": name, "object": "model", "created": 0, "owned_by": "x"}
                    | ({} if room is None else {"meta": {"n_ctx": room}})
                    for name, room in rooms.items()
                ]
                self.send(200, json.dumps({"object": "list", "data": models}).encode())

    def reply(self) -> None:
        chat = self.chat
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_probe = asked["max_tokens"] == 1
        with chat.lock:
            chat.requests.append({**asked, "path": self.path})
            if not is_probe:
                chat.asked.append(chat.requests[-1])
                chat.open += 1
                chat.most_at_once = max(chat.most_at_once, chat.open)
            failure = chat.failures.pop(0) if chat.failures and not is_probe and not chat.dead else None
        try:
            self.answer(asked, failure)
        finally:
            with chat.lock:
                chat.open -= not is_probe

    def answer(self, asked: dict[str, Any], failure: Callable[[Handler], None] | None) -> None:
        chat = self.chat
        if chat.dead:
            if asked["max_tokens"] == 1 and chat.back_as is not None:
                chat.model, chat.dead = chat.back_as, False
            self.close_connection = True
        elif chat.key is not None and self.headers["Authorization"] != f"Bearer {chat.key}":
            self.refuse(401, f"Incorrect API key provided: {self.headers['Authorization']}")
        elif self.path not in chat.paths:
            self.refuse(404, "no such path")
        elif asked["model"] != chat.model:
            chat.refusal(self)
        elif failure is not None:
            failure(self)
        elif asked["n"] > chat.slots:
            said = f"Field 'n': Value must be between 1 <= value <= {chat.slots}, but got {asked['n']}"
            self.refuse(400, said, code=400)
        else:
            self.complete(asked)

    def complete(self, asked: dict[str, Any]) -> None:
        is_chat = self.path.endswith("/chat/completions")
        said = self.chat.choose(asked)
        if self.chat.dead:  # which it died over
            self.close_connection = True
            return
        thought = {"reasoning_content": self.chat.thought} if self.chat.thought else {}
        thought |= self.chat.beside
        choices = [
            {"index": index, "finish_reason": reason, **self.chat.beside}
            | ({"message": {"role": "assistant", "content": text, **thought}} if is_chat else {"text": text})
            for index, (text, reason) in enumerate(said)
        ]
        kind = "chat.completion" if is_chat else "text_completion"
        reply = {"id": "x", "object": kind, "created": 0, "model": self.chat.model, "choices": choices}
        if self.chat.usage:
            reply["usage"] = {"prompt_tokens": 3, "completion_tokens": 7 * len(choices), "total_tokens": 0}
        self.send(200, json.dumps(reply).encode())


@contextlib.contextmanager
def model_server(**settings: Any) -> Iterator[ModelServer]:
    made = ModelServer(lambda content: content, **settings)
    with serving(made.answer, chat=made, kind=ModelHandler):
        yield made


def every_prompt(servers: list[ModelServer]) -> Counter[str]:
    """Count the requests for each prompt, over all servers."""
    return Counter(asked["prompt"] for server in servers for asked in server.asked)
