"""A recipe's `training` blocks: `transformers.TrainingArguments` with the method's defaults."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from allo.recipe.numbers import BatchSize, Count, NotNegative, Number, Positive, Seed, Whole

Group = Literal["none", "prompt"]
"""The rows that come into a step together: each by itself, or all of a prompt."""

_BELOW_ONE = Annotated[Number, Field(ge=0, lt=1)]
_BOUNDS: dict[str, TypeAdapter[Any]] = {
    "max_steps": TypeAdapter(Annotated[Whole, Field(ge=-1, le=10**9)]),
    "data_seed": TypeAdapter(Seed | None),
    "adam_beta1": TypeAdapter(_BELOW_ONE),
    "adam_beta2": TypeAdapter(_BELOW_ONE),
    "adam_epsilon": TypeAdapter(NotNegative),
    "weight_decay": TypeAdapter(NotNegative),
    "max_grad_norm": TypeAdapter(Number),
}
"""Keys that transformers does not check: the optimizer or a generator would fail after hours of sampling."""

_PLAIN = {
    *("learning_rate", "num_train_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "save_total_limit"),
}


class Training(BaseModel):
    """Passed unchanged to `transformers.TrainingArguments`, which reports unknown keys.

    The fields here are those whose defaults differ from transformers'.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    learning_rate: Positive = 1e-6
    num_train_epochs: Annotated[Positive, Field(le=10**6)] = 1.0
    per_device_train_batch_size: BatchSize = 4
    gradient_accumulation_steps: Count = 8
    lr_scheduler_type: str = "cosine"
    warmup_steps: NotNegative = 0.1
    """Below 1, a share of all steps."""
    logging_steps: Positive = 1
    save_steps: Positive = 0.25
    save_total_limit: Annotated[Whole, Field(ge=2, le=10**6)] = 2
    """At least 2, so that the last complete checkpoint stays until the next one is complete."""
    report_to: str | list[str] = "none"

    @property
    def is_plain(self) -> bool:
        """Return whether the block sets only numbers that transformers reads as the recipe does."""
        return self.model_fields_set <= _PLAIN

    @model_validator(mode="after")
    def _no_secret(self) -> "Training":
        """Refuse secrets without repeating them: a recipe is saved with its run and shown in its report."""
        secret = next((key for key in self.model_extra or {} if key.endswith("token")), None)
        if secret is not None:
            raise PydanticCustomError(
                "secret",
                "{key}: a secret does not belong in a recipe; set HF_TOKEN in the environment",
                {"key": secret},
            )
        return self

    @model_validator(mode="after")
    def _within_bounds(self) -> "Training":
        for key, value in (self.model_extra or {}).items():
            if key not in _BOUNDS:
                continue
            try:
                _BOUNDS[key].validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{key} {value!r}: {error.errors()[0]['msg']}") from error
        return self


class SftTraining(Training):
    learning_rate: Positive = 2e-5
    warmup_steps: NotNegative = 0.03


class ContrastTraining(Training):
    learning_rate: Positive = 2e-5
    warmup_steps: NotNegative = 0.03


class ForgetTraining(Training):
    learning_rate: Positive = 5e-7
    gradient_accumulation_steps: Count = 32
    warmup_steps: NotNegative = 0.03


class ImproveTraining(Training):
    learning_rate: Positive = 5e-6
    gradient_accumulation_steps: Count = 32
