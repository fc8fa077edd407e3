"""Single tokens as readable text."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_SPACE_MARK = "\u2581"  # used by SentencePiece
_UNREADABLE = "\ufffd"


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """Return the text of each token, with its space; parts of characters become escaped bytes."""
    named = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return [_text(tokenizer, number, byte_of, is_named=number in named) for number in ids]


def num_unknown(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]]) -> int:
    """Count the rows that contain the unknown token; 0 if that token has another meaning, too."""
    number = tokenizer.unk_token_id
    if number is None or number in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return 0
    return sum(number in row for row in rows)


def _text(tokenizer: PreTrainedTokenizerBase, number: int, byte_of: dict[str, int], *, is_named: bool) -> str:
    token = str(tokenizer.convert_ids_to_tokens(number))
    if is_named:
        return token
    if _SPACE_MARK in token:
        return token.replace(_SPACE_MARK, " ")
    text = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    if _UNREADABLE not in text:
        return text
    if all(letter in byte_of for letter in token):
        return bytes(byte_of[letter] for letter in token).decode("utf-8", errors="backslashreplace")
    return token
