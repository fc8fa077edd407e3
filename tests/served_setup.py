"""Prompts, and servers that complete them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from allo.files.artifacts import ResumableLines
from allo.sampling.endpoint import Endpoint
from allo.sampling.replies import Asked, RequestSettings, seed_of
from allo.sampling.served import complete
from model_server import STARTING_MODEL, ModelServer, from_seed
from server import (
    LONGEST,
)

VARIABLE = "ALLO_TEST_KEY"
NUM, N, SEED = 10, 4, 5
ADVICE = "Serve the folder there."
Rows = dict[tuple[str, int], dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One call's counts, and all rows of the part file by prompt and index."""

    counts: dict[str, Any]
    rows: Rows

    @property
    def texts(self) -> dict[tuple[str, int], str]:
        return {place: row["text"] for place, row in self.rows.items()}


def prompts(num: int = NUM) -> list[Asked]:
    return [Asked(f"p{number}", f"prompt {number}", num_tokens=3) for number in range(num)]


SETTINGS = RequestSettings(num_generations=N, temperature=0.7, top_p=0.9, max_new_tokens=20, seed=SEED)


def sampled(
    servers: list[ModelServer],
    folder: Path,
    asked: list[Asked] | None = None,
    *,
    settings: RequestSettings = SETTINGS,
    model: str = STARTING_MODEL,
    patience: float = 5.0,
    **own: Any,
) -> Run:
    place = Endpoint("", model, key_variable=VARIABLE, concurrency=4, timeout=2 * LONGEST, max_retries=3)
    counts = complete(
        [replace(place, base_url=server.url, **own) for server in servers],
        prompts() if asked is None else asked,
        settings,
        lines=ResumableLines(folder / "out"),
        patience=patience,
        advice=ADVICE,
        num_tokens=len,
    )
    return Run(counts, recorded(folder))


def recorded(folder: Path) -> Rows:
    rows = list(ResumableLines(folder / "out").rows())
    found = {(row["prompt_id"], row["index"]): row for row in rows}
    assert len(found) == len(rows), "a completion is there twice"
    return found


def expected(num: int = NUM) -> dict[tuple[str, int], str]:
    """Return the completions of servers that honour n and seeds, whichever of them is asked."""
    return {
        (f"p{number}", index): f"prompt {number} -> {seed_of(SEED, f'p{number}', 0) + index}"
        for number in range(num)
        for index in range(N)
    }


PLACES = set(expected())


def after(wait: Callable[[], object]) -> Callable[[dict[str, Any]], list[tuple[str, str]]]:
    """Answers as always, but requests for more than one token only once `wait` returns."""

    def choose(asked: dict[str, Any]) -> list[tuple[str, str]]:
        if asked["max_tokens"] > 1:
            wait()
        return [(from_seed(asked, index), "stop") for index in range(asked["n"])]

    return choose


def change(server: ModelServer, number: int, **changed: object) -> None:
    """From its request number `number` on, a server is another."""
    answer = server.choose

    def choose(asked: dict[str, Any]) -> list[tuple[str, str]]:
        if len(server.asked) >= number:
            for name, value in changed.items():
                setattr(server, name, value)
        return answer(asked)

    server.choose = choose
