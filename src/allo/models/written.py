"""The check that a chat template writes what a row gives it: a template leaves out what it does not know, and says nothing."""

from collections.abc import Iterable
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from allo.files.records import Pair, Prompt
from allo.models.templates import PROBE, Chat


def check_written(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Prompt | Pair]) -> None:
    """Refuse a row of which the chat template leaves something out that would change the prompt.

    Of rows alike in their roles, fields and settings the first is checked. Earlier thoughts may be left out by a template
    that knows them: many do so on purpose. Raises `UserError`.
    """
    seen = set()
    for row in rows:
        if isinstance(row.prompt, str):
            continue
        settings = row.template or {}
        kind = (
            tuple((message["role"], *sorted(message)) for message in row.prompt),
            *sorted(settings),
            *sorted(settings.get("chat_template_kwargs", {})),
        )
        if kind not in seen:
            seen.add(kind)
            name = row.id if isinstance(row, Prompt) else row.prompt_id
            _check(Chat(tokenizer, row.prompt, settings, f"prompt {name}"))


def _check(chat: Chat) -> None:
    chat.check_fields()
    messages = list(chat.messages)
    for number, message in enumerate(messages):
        said = [*messages[:number], {**message, "content": PROBE}, *messages[number + 1 :]]
        if message["role"] != "assistant" and PROBE not in replace(chat, messages=said).text(
            generation_prompt=True
        ):
            chat.refuse(f"the `{message['role']}` message")
