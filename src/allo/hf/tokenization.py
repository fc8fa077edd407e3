"""Text to token ids: the one place where a prompt meets a completion."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from allo.errors import UserError
from allo.records import Message


@dataclass(frozen=True)
class Tokenized:
    """Token ids of a prompt and of its completion; the model reads them one after the other.

    `prompt_ids` has BOS once where the tokenizer has one, and is never empty: its last token's logits
    predict `completion_ids[0]`. `completion_ids` ends with EOS if and only if the completion ended by itself.
    """

    prompt_ids: list[int]
    completion_ids: list[int]


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    completion: str,
    *,
    finished: bool = True,
    completion_ids: list[int] | None = None,
    max_length: int,
) -> Tokenized | None:
    """Tokenize a prompt and a completion apart, so that no token spans the two.

    `completion_ids`, if given, are the completion's ids, taken as they are.

    A pair longer than `max_length` tokens loses the beginning of its prompt, but never BOS. None where
    the completion leaves no room for a prompt token, or has no token to train on.
    """
    if completion_ids is None:
        end = [tokenizer.eos_token_id] if finished else []
        completion_ids = [*tokenizer(completion, add_special_tokens=False).input_ids, *end]
    room = max_length - len(completion_ids)
    if room < 1 or not completion_ids:
        return None
    return Tokenized(cut_left(tokenizer, prompt_ids(tokenizer, prompt), room), completion_ids)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message]) -> list[int]:
    """Token ids of a prompt that a completion can follow.

    Text is read as it is; messages are rendered by the chat template up to where the assistant speaks.
    What the tokenizer puts before a text (BOS) comes once, also where the text begins with it.

    Raises:
        UserError: messages without a chat template, or a prompt that has no token at all.
    """
    text = _rendered(tokenizer, prompt)
    prefix = _prefix(tokenizer)
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    while prefix and ids[: len(prefix)] == prefix:
        del ids[: len(prefix)]
    if not prefix + ids:
        raise UserError("A prompt is empty and the tokenizer has no BOS token: there is nothing to continue.")
    return prefix + ids


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message], max_length: int) -> str:
    """The text of which another program with this tokenizer makes `prompt_ids`, cut to `max_length` tokens.

    It begins without what the tokenizer puts before every text (BOS), since it does so there, too. The text of a
    prompt that is cut is decoded from what is left of it.
    """
    ids = prompt_ids(tokenizer, prompt)
    prefix = _prefix(tokenizer)
    if len(ids) > max_length:
        kept = cut_left(tokenizer, ids, max_length)
        kept = kept[len(prefix) :] if kept[: len(prefix)] == prefix else kept
        return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))
    text = _rendered(tokenizer, prompt)
    begin = tokenizer.decode(prefix) if prefix else ""
    while begin and text.startswith(begin):
        text = text[len(begin) :]
    return text


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the id of the token that ends a turn under the chat template; nothing without a template or such a token."""
    if tokenizer.chat_template is None:
        return []
    said = "allo"
    turns = [Message(role="user", content=said), Message(role="assistant", content=said)]
    rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    after = tokenizer(rendered.rpartition(said)[2].lstrip(), add_special_tokens=False).input_ids
    return [after[0]] if after and after[0] in tokenizer.added_tokens_decoder else []


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message]) -> str:
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the prompt is a list of messages, but the tokenizer has no chat "
            "template; give prompts as text or a model with a template."
        )
    return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text that goes on."""
    prefix = list(tokenizer("").input_ids)
    if prefix[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]:
        prefix.pop()  # some tokenizers close every text with EOS; here a completion follows
    return prefix


def cut_left(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> list[int]:
    """The last `max_length` tokens of a prompt, a leading BOS kept (it then takes one of them)."""
    assert max_length >= 1
    if len(ids) <= max_length:
        return ids
    bos = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    return bos + ids[len(ids) - max_length + len(bos) :]
