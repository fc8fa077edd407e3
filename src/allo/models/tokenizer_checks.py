"""Checks of a tokenizer: unique ids, patterns that terminate, and ids that the model has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from allo.errors import UserError, and_more

# Texts on which a pattern with exponential backtracking does not terminate.
_RUN = 48
_TRIED = [
    kind * _RUN + end for kind in ("a", "ab ", "1", " ", "!", "\n", "é") for end in ("", "!", "a", "\n", "_")
]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, ref: str | Path) -> None:
    """Raise UserError if two tokens share an id; run the tokenizer on a few texts and let its errors through."""
    token_of: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        other = token_of.setdefault(number, token)
        if other != token:
            raise UserError(
                f"{ref}: the tokenizer gives tokens {other!r} and {token!r} the same id, {number}: tokenizer.json is damaged; "
                "download it again."
            )
    with _no_native_output():
        for text in _TRIED:
            tokenizer(text, add_special_tokens=False)


def check_ids_fit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, ref: str | Path) -> None:
    """Raise UserError, naming the tokens, if the tokenizer has ids without an embedding in the model.

    The model may have more rows than the tokenizer has tokens: embeddings are often padded.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        named = ", ".join(f"{token!r} ({number})" for number, token in beyond[:3])
        raise UserError(
            f"{ref}: the tokenizer has {len(beyond)} tokens for which the model has no embedding: {named}{and_more(beyond, named=3)}, and "
            f"config.json's vocab_size is {rows}. Give the tokenizer that belongs to the model, or resize its embeddings "
            "(`model.resize_token_embeddings(len(tokenizer))`) and save it again."
        )


def require_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless the tokenizer has a pad token."""
    if tokenizer.pad_token_id is None:
        raise UserError(
            "the tokenizer has no pad token; set tokenizer.pad_token, for example to its eos_token."
        )


@contextmanager
def _no_native_output() -> Iterator[None]:
    """Hide native code's output to standard error on failure: its error says the same."""
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
