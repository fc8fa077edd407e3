"""A reward function for `judge.function`, with the arguments that TRL's GRPOTrainer passes."""

from typing import Any


def reward(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | bool | None]:
    """Return one reward a completion: a number, or true and false; None if there is no verdict.

    A prompt or completion is a text, or a list of messages if the prompt is one. `columns` holds the rows' other
    columns, one value a completion.
    """
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    # Replace this example, which prefers short answers.
    return [-float(len(text)) for text in texts]
