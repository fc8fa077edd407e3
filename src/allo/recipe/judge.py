"""The recipe's blocks on judging completions, and on making pairs from judged ones."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from allo.recipe.numbers import BatchSize, Count, Name, NotNegative, Number, Seconds, Share, Tokens
from allo.recipe.own_code import PATTERN
from allo.recipe.sources import Block


def _listed(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class Judge(Block):
    """Judging by final answers, by your own function, or by a reward model."""

    verifier: Literal["auto", "final_answer", "choice"] = "auto"
    """`auto` is `choice` for a prompt with choices, otherwise `final_answer`."""
    max_unanswered: Share = 0.5
    """The run stops if more than this share of the samples have no final answer that the verifier can read."""
    function: Annotated[
        list[Annotated[str, Field(pattern=PATTERN)]],
        BeforeValidator(_listed, json_schema_input_type=str | list[str] | None),
    ] = []
    """A reward function as TRL's GRPOTrainer takes it, `file.py:function`, or a list of them (docs/judging.md). It then
    judges the samples of `data`, which need no `answer`, in every round and for every trainer, and measures the
    evaluation sets."""
    weights: list[Number] | None = None
    """One weight a function, as TRL's `reward_weights`; 1 each by default. The weighted rewards are added."""
    timeout: Seconds = 120.0
    """Seconds that one call of a function may take, for one batch."""
    reward_model: Name | None = None
    """A folder or hub id of a sequence classifier with one label. It then judges the samples of `data`, which need no
    `answer`, in every round and for every trainer. It also measures the evaluation sets without answers. The keys
    below concern reward models."""
    max_length: Tokens = 2048
    """Tokens read of a prompt with a completion; a longer text loses its beginning."""
    batch_size: BatchSize = 16
    """Completions read together. A function gets all samples of a prompt together."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The dtype of the reward model's weights."""
    pad_token: Name | None = None
    """The pad token, if neither the model's configuration nor its tokenizer names one."""

    @model_validator(mode="after")
    def _one_judges(self) -> "Judge":
        if self.function and self.reward_model is not None:
            raise ValueError("function and reward_model both judge the samples: remove one of them")
        if self.weights is not None and len(self.weights) != len(self.function):
            raise ValueError(
                f"weights has {len(self.weights)} numbers for {len(self.function)} functions: give one a function"
            )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that verdicts depend on."""
        return self.model_dump(exclude={"timeout", "max_unanswered"})

    @property
    def function_weights(self) -> list[float]:
        return [1.0] * len(self.function) if self.weights is None else self.weights


class Pairing(Block):
    max_pairs_per_prompt: Count = 5
    """Random (right, wrong) pairs. With rewards other than 0 and 1: the best with the worst, then the second best with the second worst,
    and so on."""
    margin: NotNegative = 0.0
    """The smallest difference of a pair's rewards, or of rated rows' scores; equal ones never make a pair."""
