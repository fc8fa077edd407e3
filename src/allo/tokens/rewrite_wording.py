"""The words in which a model is asked for a minimal rewrite of a wrong completion (method.md 1.2)."""

from allo.files.records import Message

WORDING = 1
"""Raised with every change of the words: a rewriter knows those that it was trained with."""


def ask_for_rewrite(prompt: str | list[Message], *, right: str, completion: str) -> str | list[Message]:
    """The problem, a right solution and a completion, and the request to correct it with few changes.

    Text stays text, and ends where the rewrite begins. Of messages the last one, the user's, says more. What is to
    be edited stands last, since a prompt that is too long loses its beginning.
    """
    request = (
        f"Correct solution:\n{right.strip()}\n\n"
        f"Draft:\n{completion.strip()}\n\n"
        "The draft again, changed only where it is wrong:\n"
    )
    if isinstance(prompt, str):
        return f"{prompt.rstrip()}\n\n{request}"
    *before, last = prompt
    return [*before, Message(role=last["role"], content=f"{last['content'].rstrip()}\n\n{request.rstrip()}")]
