"""Calls of tools beside a reply's text: such a completion is not whole, and is none."""

from types import SimpleNamespace
from typing import Any

import pytest

from allo.sampling.replies import Reply, read

CALL = [{"type": "function", "function": {"name": "look", "arguments": "{}"}}]


def reply(*besides: dict[str, Any]) -> Any:
    messages = [SimpleNamespace(content="It is 5.", **beside) for beside in besides]
    choices = [SimpleNamespace(message=message, finish_reason="stop") for message in messages]
    return read(SimpleNamespace(choices=choices, usage=None), number=9, stop=[], key="")


@pytest.mark.parametrize(
    "beside", [{"tool_calls": CALL}, {"function_call": CALL[0]}, {"model_extra": {"tool_call": CALL}}]
)
def test_a_completion_with_calls_beside_its_text_is_none(beside: dict[str, Any]) -> None:
    found = reply({}, beside, {"tool_calls": []}, {"tool_calls": None, "function_call": None})
    assert isinstance(found, Reply) and len(found.choices) == 3
    assert not isinstance(reply(beside), Reply)
