"""Text to token ids: the only place that joins a prompt and a completion."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from transformers import BatchEncoding, PreTrainedTokenizerBase

from allo.errors import UserError
from allo.files.records import Message
from allo.files.rows import shown
from allo.models.templates import Chat, Turn, completion_text

PANIC = "PanicException"
"""The error of native code: not an Exception, and no module exports its class."""
# Texts after which a completion is tokenized separately. After a letter, SentencePiece inserts no space.
_ANCHORS = ("", "\n", "a", ".", "1")


@dataclass(frozen=True)
class Tokenized:
    """Token ids of a prompt and of its completion; the model reads them one after the other.

    `prompt_ids` has BOS once if the tokenizer has one, and is never empty: its last token's logits predict
    `completion_ids[0]`. `completion_ids` ends with an end of turn or EOS if and only if the completion finished.
    `cut`: the prompt lost its beginning.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    cut: bool = False


@dataclass(frozen=True)
class Opened:
    """A prompt that completions can follow: its text, and the text's `own_ids`, which `ids` have after BOS.

    `turn`: the assistant's turn after messages, None after text. `place`: what errors begin with.
    """

    text: str
    own_ids: list[int]
    ids: list[int]
    turn: Turn | None
    place: str = ""


def opened(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    *,
    template: Mapping[str, object] | None = None,
    place: str = "",
) -> Opened:
    """Render and tokenize a prompt once, for all its completions. Raises `UserError` as `prompt_ids`."""
    turn = None
    if not isinstance(prompt, str):
        turn = Chat(tokenizer, prompt, template, place).turn()
    text = turn.prompt if turn is not None else str(prompt)
    own = bare_ids(tokenizer, text, place=place)
    return Opened(text, own, _with_prefix(tokenizer, own, place), turn, place)


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    completion: str | Message,
    *,
    finished: bool = True,
    completion_ids: list[int] | None = None,
    max_length: int,
    template: Mapping[str, object] | None = None,
    place: str = "",
    before: Opened | None = None,
) -> Tokenized | None:
    """Return the ids of a prompt, as the sampler sees it, and of a completion that continues it.

    Prompt and completion are tokenized together; ids after the prompt's own are the completion's. If a token would
    span both, the completion is tokenized separately, to ids that read as its text after the prompt. TRL's ids differ
    only in that case, since such a token changes the prompt's; `docs/method.md` lists the other differences.

    A finished completion ends with the chat template's end of turn after messages, with EOS after text. An end that
    the text already has is not repeated. Text that the template writes after the end is not part of the completion,
    because sampling stops there. A pair longer than `max_length` tokens loses the beginning of its prompt, but never
    BOS.

    Args:
        completion: a text, or an assistant's message that the chat template renders.
        completion_ids: the completion's sampled ids, used unchanged.
        template: `tools`, `documents` and `chat_template_kwargs` of the prompt.
        place: the beginning of errors, such as the row.
        before: the prompt, if it is `opened` already.

    Returns:
        None if the completion leaves no room for a prompt token, or has no token to train on.

    Raises:
        UserError: as `prompt_ids`; the template does not write a field of the completion's message; given ids end a
            turn although the completion did not finish.
    """
    before = before or opened(tokenizer, prompt, template=template, place=place)
    if completion_ids is not None:
        _check_unfinished(tokenizer, before, completion_ids, finished=finished, place=place)
        return _fitted(tokenizer, before.ids, list(completion_ids), max_length)
    if not isinstance(completion, str):
        if isinstance(prompt, str):
            raise UserError(
                f"{place or 'a row'}: the completion is a message, and the prompt is text; give both alike."
            )
        completion = completion_text(tokenizer, prompt, completion, template=template, place=place)
        completion, close = _parted(tokenizer, completion, before.turn.close if before.turn else "")
    elif before.turn is not None and not isinstance(prompt, str):
        close = before.turn.close
        chat = Chat(tokenizer, prompt, template, place)
        completion = chat.answer(completion, before.turn, finished=finished)
    else:
        close = tokenizer.eos_token
    end: list[int] = []
    if finished:
        completion, end = _ended(tokenizer, completion, close)
    return _fitted(tokenizer, before.ids, [*_continuation(tokenizer, before, completion), *end], max_length)


def _check_unfinished(
    tokenizer: PreTrainedTokenizerBase, before: Opened, ids: list[int], *, finished: bool, place: str
) -> None:
    """Raise `UserError` for ids that end a completion which is said not to have finished."""
    if not finished and ids and ids[-1] in _end_ids(tokenizer, before):
        raise UserError(
            f"{place or 'a row'}: the completion's token ids end with {_read(tokenizer, ids[-1:])!r}, which ends a "
            "completion, and `finished` is false: set it to true, or take the last id away."
        )


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    *,
    template: Mapping[str, object] | None = None,
    place: str = "",
) -> list[int]:
    """Return the token ids of a prompt that a completion can follow.

    Text is read unchanged; the chat template renders messages up to the assistant's answer. The tokenizer's prefix
    (BOS) comes once, even if the text already begins with it.

    Raises:
        UserError: the chat template is missing or fails on the messages, or the prompt has no tokens.
    """
    return _text_and_ids(tokenizer, prompt, template, place)[1]


def prompt_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    max_length: int,
    *,
    template: Mapping[str, object] | None = None,
    place: str = "",
) -> str:
    """Return a text that another program with this tokenizer reads as `prompt_ids`, cut to `max_length` tokens.

    The text lacks the tokenizer's prefix (BOS), since that program adds it too. The text of a cut prompt is decoded
    from the remaining ids.
    """
    text, ids = _text_and_ids(tokenizer, prompt, template, place)
    prefix = _prefix(tokenizer)
    if len(ids) > max_length:
        kept = cut_left(tokenizer, ids, max_length)
        kept = kept[len(prefix) :] if kept[: len(prefix)] == prefix else kept
        return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))
    begin = tokenizer.decode(prefix) if prefix else ""
    while begin and text.startswith(begin):
        text = text[len(begin) :]
    return text


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the id of the token that ends a turn under the chat template, or nothing without such a token.

    The result is empty if the template cannot render a question and its answer, even after a system message, which
    some require. Messages are refused elsewhere, by name.
    """
    if tokenizer.chat_template is None:
        return []
    asked = [Message(role="user", content="2+2?")]
    for messages in (asked, [Message(role="system", content="Answer."), *asked]):
        with suppress(UserError):
            _, ends = _end_tokens(tokenizer, Chat(tokenizer, messages).turn().close)
            return tokenizer.convert_tokens_to_ids(ends[-1:])
    return []


def _text_and_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    template: Mapping[str, object] | None,
    place: str,
) -> tuple[str, list[int]]:
    text = prompt if isinstance(prompt, str) else Chat(tokenizer, prompt, template, place).opening()
    return text, _with_prefix(tokenizer, bare_ids(tokenizer, text, place=place), place)


def _with_prefix(tokenizer: PreTrainedTokenizerBase, own: list[int], place: str) -> list[int]:
    """Return a text's own ids after the tokenizer's prefix, which comes once."""
    prefix, ids = _prefix(tokenizer), list(own)
    while prefix and ids[: len(prefix)] == prefix:
        del ids[: len(prefix)]
    if not prefix + ids:
        raise UserError(
            f"{place + ': ' if place else ''}A prompt is empty and the tokenizer has no BOS token: there is nothing to "
            "continue."
        )
    return prefix + ids


def encoded(
    tokenizer: PreTrainedTokenizerBase, *texts: str, place: str, special: bool = False, offsets: bool = False
) -> BatchEncoding:
    """Return what the tokenizer makes of a text, or of two together, by default without what it puts around every text.

    Raises `UserError`, which begins with `place`, if its native code fails on them.
    """
    try:
        return tokenizer(*texts, add_special_tokens=special, return_offsets_mapping=offsets)
    except BaseException as error:
        # Native code raises no other class of error; that of its panics is no Exception.
        if type(error) is not Exception and type(error).__name__ != PANIC:
            raise
        raise UserError(
            f"{place or 'a text'}: the tokenizer {tokenizer.name_or_path} fails ({type(error).__name__}: {error}) on the text "
            f"{shown(''.join(texts))}: change the text, or take a model with another tokenizer."
        ) from error


def bare_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, place: str = "") -> list[int]:
    """Return a text's own ids. Raises `UserError` as `encoded`."""
    return list(encoded(tokenizer, text, place=place).input_ids)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer puts before every text, without a closing EOS."""
    prefix = list(encoded(tokenizer, "", place="", special=True).input_ids)
    if prefix[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]:
        prefix.pop()  # some tokenizers end every text with EOS, but here a completion follows
    return prefix


def _continuation(tokenizer: PreTrainedTokenizerBase, before: Opened, text: str) -> list[int]:
    """Return the ids of `text` after a prompt."""
    place = before.place
    own = _after(tokenizer, before.text, before.own_ids, text, place)
    if own is not None:
        return own
    expected = _read(tokenizer, before.ids) + text
    candidates = [_after(tokenizer, anchor, bare_ids(tokenizer, anchor), text, place) for anchor in _ANCHORS]
    exact = (ids for ids in candidates if ids is not None and _read(tokenizer, before.ids + ids) == expected)
    # A tokenizer that changes texts (to lower case, for example) never restores the original.
    return next(exact, bare_ids(tokenizer, text, place=place))


def _after(
    tokenizer: PreTrainedTokenizerBase, anchor: str, before: list[int], text: str, place: str
) -> list[int] | None:
    """Return the ids of `text` after `anchor`, whose ids are `before`, or None if a token spans both."""
    whole = encoded(tokenizer, anchor + text, place=place, offsets=tokenizer.is_fast)
    num = len(before)
    if list(whole.input_ids[:num]) != before:
        return None
    # One unknown token may cover the end of one and the beginning of the other.
    if num and tokenizer.is_fast and whole.offset_mapping[num - 1][1] > len(anchor):
        return None
    return list(whole.input_ids[num:])


def _read(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _parted(tokenizer: PreTrainedTokenizerBase, text: str, close: str) -> tuple[str, str]:
    """A message's text and what closes it: `close`, as after an answer, or another token, as after a call."""
    written = text.rstrip()
    if not text.endswith(close):
        close = next((token for token in _special_tokens(tokenizer) if written.endswith(token)), close)
        text = written
    return text.removesuffix(close), close


def _ended(tokenizer: PreTrainedTokenizerBase, text: str, close: str) -> tuple[str, list[int]]:
    """Return a finished completion's text and the tokens that end it; `close` follows an answer."""
    before, ends = _end_tokens(tokenizer, close)
    ends = ends or [tokenizer.eos_token]
    written = text.rstrip()
    for size in range(len(ends), 0, -1):
        if written.endswith("".join(ends[:size])):
            return written.removesuffix("".join(ends[:size])), tokenizer.convert_tokens_to_ids(ends)
    for end in (ends[-1], tokenizer.eos_token, *_other_ends(tokenizer, written)):
        if written.endswith(end):
            return written.removesuffix(end), tokenizer.convert_tokens_to_ids([end])
    if before.strip() and written.endswith(before.strip()):
        before = ""
    return text + before, tokenizer.convert_tokens_to_ids(ends)


def _end_ids(tokenizer: PreTrainedTokenizerBase, before: Opened) -> list[int]:
    """Return the ids that end a completion of a prompt: EOS and, after messages, the end of a turn."""
    ends = [] if before.turn is None else _end_tokens(tokenizer, before.turn.close)[1][-1:]
    return [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(ends)]


def _other_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the chat template's end of turn if a text ends with a special token that may be it."""
    if tokenizer.chat_template is None or not any(map(text.endswith, _special_tokens(tokenizer))):
        return []
    return tokenizer.convert_ids_to_tokens(turn_end_ids(tokenizer))


def _end_tokens(tokenizer: PreTrainedTokenizerBase, close: str) -> tuple[str, list[str]]:
    """Find the first run of special tokens in the text that closes a turn, and the text before it.

    There may be none; then only EOS, after the text, ends a sample.
    """
    specials = sorted(_special_tokens(tokenizer), key=len, reverse=True)
    starts = [close.index(token) for token in specials if token in close]
    if not starts:
        return close.rstrip(), []
    before, rest, ends = close[: min(starts)], close[min(starts) :], []
    while token := next(filter(rest.startswith, specials), None):
        ends.append(token)
        rest = rest.removeprefix(token)
    return before, ends


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens, and added ones that the chat template writes; line breaks and spaces are text, if they are added, too."""
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    written = [str(token) for token in added if token.special or str(token) in template]
    return [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *written]) if token.strip()]


def _fitted(
    tokenizer: PreTrainedTokenizerBase, before: list[int], completion_ids: list[int], max_length: int
) -> Tokenized | None:
    """Fit both into `max_length` tokens."""
    room = max_length - len(completion_ids)
    if room < 1 or not completion_ids:
        return None
    return Tokenized(cut_left(tokenizer, before, room), completion_ids, cut=len(before) > room)


def cut_left(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> list[int]:
    """Return the last `max_length` tokens of a prompt, with a leading BOS kept as one of them."""
    assert max_length >= 1
    if len(ids) <= max_length:
        return ids
    bos = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    return bos + ids[len(ids) - max_length + len(bos) :]
