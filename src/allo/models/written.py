"""A check that a chat template writes all fields of a row: templates silently omit what they do not know."""

from collections.abc import Iterable
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from allo.files.records import Pair, Prompt
from allo.models.templates import PROBE, Chat


def check_written(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Prompt | Pair]) -> None:
    """Refuse a row if the chat template omits a part of it that would change the prompt.

    Only the first of all rows with the same roles, fields and settings is checked. A template that knows earlier
    thoughts may omit them: many do so on purpose. Raises `UserError`.
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
