"""The check that a chat template writes what a row gives it: a template leaves out what it does not know, and says nothing."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from allo.errors import UserError
from allo.hf.templates import render
from allo.records import Message, Pair, Prompt

_PROBE = "7391846205"  # passes unchanged through the filters of templates


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
            _check(tokenizer, row.prompt, settings, place=f"prompt {name}")


def _check(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], settings: Mapping[str, Any], *, place: str
) -> None:
    def rendered(chat: list[Message], given: Mapping[str, Any]) -> str:
        return render(tokenizer, chat, generation_prompt=True, template=given, place=place)

    def refuse(what: str) -> NoReturn:
        raise UserError(
            f"{place}: the chat template of {tokenizer.name_or_path or 'the tokenizer'} does not write {what}; remove it, "
            "or take a model whose template writes it."
        )

    whole = rendered(messages, settings)
    source = tokenizer.get_chat_template(None, settings.get("tools"))
    for name in ("tools", "documents"):
        if settings.get(name) and rendered(messages, {**settings, name: None}) == whole:
            refuse(f"`{name}`")
    for name in settings.get("chat_template_kwargs", {}):
        if name not in source:
            refuse(f"`{name}` of `chat_template_kwargs`")
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            said: Message = {**message, "content": _PROBE}
            if _PROBE not in rendered([*messages[:number], said, *messages[number + 1 :]], settings):
                refuse(f"the `{message['role']}` message")
        # Without a field a template may refuse the conversation, or leave it out for reasons of its own.
        for field in ("tool_calls", "reasoning_content", "thinking"):
            if message.get(field) and field not in source:
                refuse(f"`{field}`")
