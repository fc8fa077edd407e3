"""Checks that a chat template writes all fields of a row, which templates silently omit, and that token ids are its texts'."""

from collections.abc import Iterable, Sequence
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


def reads_as(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str, *, stop: Sequence[str] = ()
) -> bool:
    """Return whether this tokenizer's `ids` decode to a sample's text, plus at most one end.

    An end is a special token, a string of `stop` or any one token, as a generation config may name any.
    """
    if not ids or not all(0 <= id < len(tokenizer) for id in ids):
        return False
    said, text = _said(tokenizer, ids).strip(), text.strip()
    if _said(tokenizer, ids[:-1]).strip() == text:
        return True
    if not said.startswith(text):
        return False
    rest = said[len(text) :]
    space = rest[: len(rest) - len(rest.lstrip())]
    if any(rest.lstrip().startswith(end.lstrip()) if end.strip() else end in space for end in stop):
        return True
    for token in (*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())):
        rest = rest.replace(token, "")
    return not rest.strip()


def _said(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
