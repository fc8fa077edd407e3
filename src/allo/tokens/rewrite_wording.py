"""The prompt that asks a model for a minimal rewrite of a wrong completion (method.md 1.2)."""

from allo.files.records import Message

WORDING = 1
"""The version of the words. Raise it with every change: a rewriter only knows the words that it was trained with."""


def ask_for_rewrite(prompt: str | list[Message], *, right: str, completion: str) -> str | list[Message]:
    """Return the problem with a right solution, a completion, and the request to correct it with few changes.

    A text prompt stays text, and ends right before the rewrite. In a chat the last message, the user's, gets longer. The
    completion stands last, because a prompt that is too long loses its beginning.
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
