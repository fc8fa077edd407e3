"""The settings with which a start recipe fits a model and its rows, each with its reason."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allo.errors import UserError
from allo.files.rows import Notes, Row
from allo.models.device import is_slow_in_bf16
from allo.models.load import empty_model, load_tokenizer, needed_pad_token, read_config
from allo.models.model_checks import num_positions
from allo.plan import plan
from allo.recipe import Recipe
from allo.tasks.row_forms import in_trl_form
from allo.tasks.sources import Sources
from allo.weights.layout import trained_parameters

STEPS, MOST_PASSES = 32, 3
"""Optimizer steps that a training should have at least, and the passes over few rows to reach them."""
LEAST_ROWS, MOST_ROWS = 8, 128
"""Rows of a step."""
_A_BATCH = 4  # rows that are computed together, as the recipe's default
RATES = (
    (10**7, {"locate": 1e-4, "forget": 5e-4, "improve": 2e-4}, "the rates of the demo, for 0.6 million"),
    (
        10**9,
        {"locate": 2e-6, "forget": 2e-5, "improve": 5e-5},
        "the rates of recipes/instruct_smollm2.yaml, for 135 million",
    ),
    (
        math.inf,
        {"locate": 1e-6, "forget": 5e-7, "improve": 5e-6},
        "the published rates, for billions of weights",
    ),
)
"""Learning rates below a number of weights, with their origin."""
_SMALL = 10**9  # weights that fp32 does not make too large


@dataclass(frozen=True)
class Decision:
    """Values at dotted keys, and the reason for them."""

    settings: Mapping[str, Any]
    reason: str

    @property
    def sentence(self) -> str:
        """The values and the reason, with stages of one value together."""
        stages: dict[tuple[str, str], list[str]] = {}
        for key, value in self.settings.items():
            stage, _, rest = key.partition(".")
            stages.setdefault((rest and f".{rest}", json.dumps(value)), []).append(stage)
        values = ", ".join(f"{'/'.join(names)}{rest} {value}" for (rest, value), names in stages.items())
        return f"{values}: {self.reason}" if values else self.reason


def for_model(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Decision]:
    """Yield settings that follow from the model and the form of its prompts. Raises `UserError` if it cannot be read."""
    trusts = recipe.trust_remote_code
    config = read_config(recipe.model, trust_remote_code=trusts)
    pad = recipe.pad_token or needed_pad_token(recipe.model, trust_remote_code=trusts)
    if pad is not None:
        yield Decision({"pad_token": pad}, "the tokenizer has no pad token, and padding carries no loss")
    tokenizer = load_tokenizer(recipe.model, pad_token=pad, trust_remote_code=trusts)
    yield _chat(tokenizer.chat_template is not None, [*map(str, tokenizer.all_special_tokens)], rows)
    stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
    weights = sum(
        each.numel() for each in trained_parameters(empty_model(config, trust_remote_code=trusts)).values()
    )
    if stored == "float32" and weights < _SMALL:
        yield Decision({"dtype": stored}, "the model is small and stored so")
    elif weights < _SMALL and is_slow_in_bf16(recipe.device):
        yield Decision({"dtype": "float32"}, "the model is small, and this CPU is slow in bfloat16")
    positions = num_positions(config)
    if positions is not None and positions < recipe.max_length:
        yield Decision({"max_length": positions}, "the model has no more positions")
    length = min(positions or recipe.max_length, recipe.max_length)
    if not recipe.data.is_ready and 2 * recipe.sample.max_new_tokens > length:
        yield Decision({"sample.max_new_tokens": length // 2}, "the prompt gets the other half of a row")
    rates, origin = next((rates, origin) for size, rates, origin in RATES if weights < size)
    trained = {stage: rate for stage, rate in rates.items() if getattr(recipe, stage) is not None}
    yield Decision(
        {f"{stage}.training.learning_rate": rate for stage, rate in trained.items()},
        f"{origin}; the model has {weights:,}",
    )


def _chat(has_template: bool, special: Sequence[str], rows: Sequence[Row]) -> Decision:
    """Return whether text prompts are wrapped as messages."""
    texts = [text for text in map(_prompt_text, rows) if text is not None]
    if not texts:
        return Decision({"chat": False}, "the prompts are messages already")
    if not has_template:
        return Decision({"chat": False}, "the model has no chat template, so it continues the plain text")
    found = next((each for each in special if any(each in text for text in texts)), None)
    if found is not None:
        return Decision({"chat": False}, f"the prompts are rendered already: they contain {found}")
    return Decision({"chat": True}, "the model has a chat template, and the prompts are plain text")


def _prompt_text(row: Row) -> str | None:
    """Return a row's prompt if it is plain text: `prompt`, otherwise the beginning of its answer."""
    read = in_trl_form(row, place="", notes=Notes())
    given = next((read[key] for key in ("prompt", "chosen", "completion") if read.get(key) is not None), None)
    return given if isinstance(given, str) else None


def for_rows(recipe: Recipe, sources: Sources) -> Iterator[Decision]:
    """Yield settings that follow from the number of rows: few rows need smaller steps, and more passes."""
    number = num_rows(recipe, sources)
    size = rows_a_step(number)
    passes = min(MOST_PASSES, max(1, math.ceil(STEPS / math.ceil(number / size))))
    stages = [stage for stage in ("locate", "forget", "improve") if getattr(recipe, stage) is not None]
    settings = {
        f"{stage}.training.{key}": value
        for stage in stages
        for key, value in (("gradient_accumulation_steps", size // _A_BATCH), ("num_train_epochs", passes))
    }
    steps = passes * math.ceil(number / size)
    what = f"{number:,} rows" if recipe.data.is_ready else f"about one pair for each of {number:,} prompts"
    limits = {
        stage: (getattr(recipe, stage).training.model_extra or {}).get("max_steps", -1) for stage in stages
    }
    fewer = "".join(
        f"; {stage} stops at its max_steps {most}" for stage, most in limits.items() if 0 < most < steps
    )
    yield Decision(settings, f"{what}, {size} a step, {passes} times: {steps:,} steps{fewer}")


def num_rows(recipe: Recipe, sources: Sources) -> int:
    """Return the number of ready rows or of prompts to train on."""
    if recipe.data.pairs is not None:
        return len(sources.pairs())
    return len(sources.feedback() if recipe.data.is_ready else sources.prompts(recipe.data))


def rows_a_step(number: int) -> int:
    """Return the rows of a step for about `STEPS` steps or more in one pass: a power of two."""
    return min(MOST_ROWS, max(LEAST_ROWS, 2 ** max(0, int(math.log2(max(1, number) / STEPS)))))


def for_gpu(recipe: Recipe, limit: int) -> Iterator[Decision]:
    """Yield the planner's settings for each stage that takes more than `limit` bytes.

    Raises `UserError` if a stage fits under no setting.
    """
    planned = plan(recipe, limit=limit)
    size = _size(limit)
    for name, why in planned.unplanned.items():
        yield Decision({}, f"{name} is not planned, {why}")
    for stage in planned.stages:
        if planned.fits(stage):
            continue
        advised = planned.advice[stage.stage]
        if advised.plan is None:
            raise UserError(
                f"{stage.stage} takes {_size(stage.total)} and does not fit into {size} under any setting that "
                "allo knows: lower max_length, or take a smaller model or a larger GPU."
            )
        yield Decision(
            advised.settings,
            f"{stage.stage} takes {_size(stage.total)} without, {_size(advised.plan.total)} with them",
        )
    if all(map(planned.fits, planned.stages)):
        yield Decision({}, f"every stage fits into {size}; at most {_size(planned.peak)} are taken")


def _size(number: int) -> str:
    return f"{number / 10**9:.1f} GB" if number >= 10**9 else f"{number / 10**6:.1f} MB"
