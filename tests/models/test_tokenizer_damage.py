"""A damaged tokenizer is refused when it is loaded; one with more ids than the model has embeddings when they meet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_quantized_refused import recipe
from transformers import AutoConfig, GPT2Config

import tiny
from allo.errors import UserError
from allo.models.load import load_tokenizer
from allo.models.reward_model import load_reward_tokenizer, read_reward_config
from allo.models.start import check_policy
from allo.models.tokenizer_checks import check_ids_fit
from model_folders import plain

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain(tmp_path / "model")


def change(folder: Path, how: Change) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))


def of_word(word: str, number: Any) -> Change:
    return lambda value: value["model"]["vocab"].__setitem__(word, number)


def pattern(text: str) -> Change:
    split = {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False}
    return lambda value: value.__setitem__("pre_tokenizer", split)


WORD = tiny.WORDS[0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (of_word(WORD, -1), "cannot load a tokenizer"),
        (of_word(WORD, 1.5), "cannot load a tokenizer"),
        (of_word(WORD, "7"), "cannot load a tokenizer"),
        (of_word(WORD, 2**32), "cannot load a tokenizer"),
        (of_word(WORD, tiny.TOKENIZER.get_vocab()[tiny.WORDS[1]]), "the same id"),
        (of_word("another", tiny.TOKENIZER.eos_token_id), "the same id"),
        (pattern("(a"), "cannot load a tokenizer"),
        (pattern("(a+)+$"), "PanicException.*retry-limit"),
        (pattern(r"(\w+\s?)*$"), "PanicException.*retry-limit"),
        (pattern("(a|aa)+$"), "PanicException.*retry-limit"),
        (lambda value: value.pop("model"), "cannot load a tokenizer"),
        (lambda value: value.__setitem__("model", None), "cannot load a tokenizer"),
        (lambda value: value.__setitem__("added_tokens", 7), "cannot load a tokenizer"),
    ],
)
def test_a_damaged_tokenizer_is_refused_in_one_sentence(
    folder: Path, how: Change, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change(folder, how)
    with pytest.raises(UserError, match=rf"(?s){folder}.*{message}"):
        load_tokenizer(folder)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "[" * 5000])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_file_of_another_form_is_refused(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=str(folder)):
        load_tokenizer(folder)


def larger(folder: Path) -> int:
    """Give the tokenizer two tokens more than the model has embeddings; return the number of these."""
    tokenizer = load_tokenizer(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<tool_call>", "<img>"])
    tokenizer.save_pretrained(folder)
    return rows


def test_ids_beyond_the_embedding_are_refused_by_token(folder: Path) -> None:
    rows = larger(folder)
    message = (
        rf"2 tokens for which .* '<tool_call>' \({rows}\), '<img>' \({rows + 1}\).* vocab_size is {rows}"
    )
    with pytest.raises(UserError, match=message):
        check_policy(recipe(folder), load_tokenizer(folder))


def test_a_reward_models_own_tokenizer_must_fit_too(tmp_path: Path) -> None:
    judge = tiny.reward_model(tmp_path / "judge")
    larger(judge)
    with pytest.raises(UserError, match="2 tokens for which the model has no embedding"):
        load_reward_tokenizer(judge, read_reward_config(judge))


@pytest.mark.parametrize("more", [0, 1, 61])
def test_an_embedding_that_is_padded_up_fits(tmp_path: Path, more: int) -> None:
    size = len(tiny.TOKENIZER) + more
    folder = plain(tmp_path / "model", vocab_size=size)
    assert check_policy(recipe(folder), load_tokenizer(folder)).vocab_size == size


def test_many_tokens_beyond_are_counted() -> None:
    config = GPT2Config(vocab_size=10)
    num = sum(number >= 10 for number in tiny.TOKENIZER.get_vocab().values())
    with pytest.raises(UserError, match=rf"{num} tokens .* and {num - 3} more"):
        check_ids_fit(tiny.TOKENIZER, config, ref="model")


def test_the_text_models_vocabulary_counts_where_it_is_nested() -> None:
    config = AutoConfig.for_model("gemma3", text_config={"vocab_size": 10})
    with pytest.raises(UserError, match="vocab_size is 10"):
        check_ids_fit(tiny.TOKENIZER, config, ref="model")
