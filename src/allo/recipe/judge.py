"""The recipe's blocks on judging completions, and on making pairs of what was judged."""

from typing import Literal

from allo.recipe.numbers import BatchSize, Count, Name, NotNegative, Tokens
from allo.recipe.sources import Block


class Judge(Block):
    """By final answers; with a reward model, by what it says of the samples of a prompt."""

    verifier: Literal["auto", "final_answer", "choice"] = "auto"
    """`auto`: `choice` where a prompt has choices, `final_answer` elsewhere."""
    reward_model: Name | None = None
    """A folder or hub id of a sequence classifier with one label. It then judges the samples of `data`, which need no
    `answer`, in every round and of every trainer, and measures the evaluation sets whose prompts have none. The keys
    below are of reward models."""
    max_length: Tokens = 2048
    """Tokens that it reads of a prompt and a completion; a longer text loses its beginning."""
    batch_size: BatchSize = 16
    """Completions that it reads together."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of its weights."""
    pad_token: Name | None = None
    """Where neither its configuration nor its tokenizer names one."""


class Pairing(Block):
    max_pairs_per_prompt: Count = 5
    """Random (right, wrong) pairs. By rewards: the best against the worst, then the second best against the second
    worst, and so on."""
    margin: NotNegative = 0.0
    """The smallest difference of a pair's rewards; equal rewards never make a pair."""
