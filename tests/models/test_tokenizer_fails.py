"""A tokenizer whose native code fails on one text: the row is named, wherever text becomes ids."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from allo.errors import UserError
from allo.models.reward_model import judged_ids
from allo.models.rows import counted_completions, counted_pairs
from allo.models.tokenization import bare_ids, prompt_ids, prompt_text, tokenize
from allo.training.trainer import ImproveTrainer
from tiny import arguments, full_mask, model
from tokenizers_of_kinds import CHATML, byte_level

BAD = "x" * 60


def endless() -> PreTrainedTokenizerFast:
    """The expression does not come to an end on many x."""
    tokenizer = byte_level(CHATML, eos="<|im_end|>")
    split = pre_tokenizers.Split(Regex("(x+x+)+y"), behavior="isolated")
    own = tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, own])
    return tokenizer


def without_unknown() -> PreTrainedTokenizerFast:
    """A word that the vocabulary lacks is an error: a bare Exception."""
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="<none>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")


WAYS: dict[str, Any] = {
    "prompt": lambda tokenizer, text: prompt_ids(tokenizer, text, place="row 7"),
    "prompt of a server": lambda tokenizer, text: prompt_text(tokenizer, text, 9, place="row 7"),
    "completion": lambda tokenizer, text: tokenize(tokenizer, "a", text, max_length=99, place="row 7"),
    "text": lambda tokenizer, text: bare_ids(tokenizer, text, place="row 7"),
    "reward": lambda tokenizer, text: judged_ids(tokenizer, "a", text, max_length=99, place="row 7"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("make", "bad"), [(endless, BAD), (without_unknown, " zzz")])
def test_the_row_and_its_text_are_named(way: str, make: Any, bad: str) -> None:
    WAYS[way](make(), " b")
    with pytest.raises(UserError, match=r"(?s)^row 7: the tokenizer .* fails .* on the text '.*: change"):
        WAYS[way](make(), bad)


def test_rows_are_named_by_the_trainers() -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": BAD}]
    with pytest.raises(UserError, match=r"^row 2: the tokenizer"):
        counted_pairs(endless(), rows, max_length=99)
    with pytest.raises(UserError, match=r"^row 1: the tokenizer"):
        counted_completions(endless(), [{"prompt": BAD, "completion": "a"}], max_length=99)


def test_a_trainer_names_its_row(tmp_path: Path) -> None:
    tokenizer = endless()
    policy = model(vocab_size=len(tokenizer))
    rows = [
        {"prompt": "a ", "chosen": "b", "rejected": "c"},
        {"prompt": "a ", "chosen": BAD, "rejected": "c"},
    ]
    with pytest.raises(UserError, match=r"^prompt train_dataset-1: the tokenizer"):
        ImproveTrainer(policy, arguments(tmp_path), rows, tokenizer, mask=full_mask(policy))


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("x"), SystemExit("x"), MemoryError("x"), ValueError("x")], ids=repr
)
def test_no_other_error_is_taken_for_the_tokenizers(error: BaseException) -> None:
    class Raising(SimpleNamespace):
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise error

    raising: Any = Raising(name_or_path="m")
    with pytest.raises(type(error), match=re.escape(str(error))):
        bare_ids(raising, "text")
