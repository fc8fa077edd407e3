"""A recipe's `training` blocks: `transformers.TrainingArguments` with the method's defaults."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from allo.recipe.numbers import BatchSize, Count, NotNegative, Positive, Whole


class Training(BaseModel):
    """Passed verbatim to `transformers.TrainingArguments`; its own check names unknown keys.

    The fields here are those whose defaults differ from transformers'.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    learning_rate: Positive = 1e-6
    num_train_epochs: Positive = 1.0
    per_device_train_batch_size: BatchSize = 4
    gradient_accumulation_steps: Count = 8
    lr_scheduler_type: str = "cosine"
    warmup_steps: NotNegative = 0.1
    """Below 1: a share of all steps."""
    logging_steps: Positive = 1
    save_steps: Positive = 0.25
    save_total_limit: Annotated[Whole, Field(ge=2, le=10**6)] = 2
    """At least 2: the last whole checkpoint stays until the next one is whole."""
    report_to: str | list[str] = "none"

    @model_validator(mode="after")
    def _no_secret(self) -> "Training":
        """A recipe is saved with its run and shown in its report. Raised without the value."""
        secret = next((key for key in self.model_extra or {} if key.endswith("token")), None)
        if secret is not None:
            raise PydanticCustomError(
                "secret",
                "{key}: a secret does not belong in a recipe; set HF_TOKEN in the environment",
                {"key": secret},
            )
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
