"""The recipe's blocks on judging completions, and on making pairs from judged ones."""

from typing import Literal

from allo.recipe.numbers import BatchSize, Count, Name, NotNegative, Tokens
from allo.recipe.sources import Block


class Judge(Block):
    """Judging by final answers, or by a reward model."""

    verifier: Literal["auto", "final_answer", "choice"] = "auto"
    """`auto` is `choice` for a prompt with choices, otherwise `final_answer`."""
    reward_model: Name | None = None
    """A folder or hub id of a sequence classifier with one label. It then judges the samples of `data`, which need no
    `answer`, in every round and for every trainer. It also measures the evaluation sets without answers. The keys
    below concern reward models."""
    max_length: Tokens = 2048
    """Tokens read of a prompt with a completion; a longer text loses its beginning."""
    batch_size: BatchSize = 16
    """Completions read together."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The dtype of the reward model's weights."""
    pad_token: Name | None = None
    """The pad token, if neither the model's configuration nor its tokenizer names one."""


class Pairing(Block):
    max_pairs_per_prompt: Count = 5
    """Random (right, wrong) pairs. With rewards: the best with the worst, then the second best with the second worst,
    and so on."""
    margin: NotNegative = 0.0
    """The smallest difference of a pair's rewards; equal rewards never make a pair."""
