"""Fixtures of the tests of servers: two of them, without a key, a proxy or long pauses."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from model_server import ModelServer, model_server
from served_setup import VARIABLE
from server import with_short_pauses, without_proxy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no proxy, and pauses that a test can wait for."""
    without_proxy(monkeypatch, VARIABLE)
    with_short_pauses(monkeypatch)
    monkeypatch.setattr("allo.sampling.endpoint.LONGEST_PAUSE", 0.0)


@pytest.fixture
def servers() -> Iterator[list[ModelServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(model_server()) for _ in range(2)]
