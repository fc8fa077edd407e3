"""The sources of a recipe's prompts and pairs."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from allo.recipe.numbers import Count, CountOrZero, GenerationsOrZero, Name, Place, Positive, Tokens
from allo.recipe.tasks import TASKS, TaskName

AUTO = "auto"
HELD_OUT = "held_out"
"""The name of the evaluation set of held-out prompts."""
NEWER = (HELD_OUT, "feedback", "config", "skip_bad")


def _number_or_share(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    whole, share = isinstance(value, int) and 0 <= value <= 10**9, is_number and 0 < value < 1
    if value is not None and value != AUTO and not (is_number and (whole or share)):
        raise ValueError("give a number of prompts (0 holds out none), a share below 1 such as 0.1, or auto")
    return value


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Block):
    """A source of prompts: exactly one of `task`, `file` and `hub`."""

    task: TaskName | None = None
    """One of the library's, or a function of yours, `file.py:function` (docs/extending.md)."""
    file: Place | None = None
    """A file, a saved data set, or a data set of the hub, with `prompt, answer?, solution?, choices?, id?` (docs/data.md)."""
    hub: Name | None = None
    split: Name = "train"
    config: Name | None = None
    """The configuration (subset) of a data set of the hub."""
    order: Literal["given", "shuffled", "shortest"] = "given"
    skip: CountOrZero = 0
    limit: Count | None = None
    skip_bad: bool | None = None
    """Leave out rows that cannot be used, such as empty ones, and count them. Otherwise the first such rows are named,
    and nothing runs."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        origins = [name for name in self._origins() if getattr(self, name) is not None]
        if len(origins) != 1:
            found = " and ".join(origins) or "none"
            raise ValueError(f"needs exactly one of {', '.join(self._origins())}; found {found}")
        if self.config is not None and not {"file", "hub", "pairs", "feedback"} & set(origins):
            raise ValueError(f"`config` is for a data set of the hub, and {origins[0]} has none: remove it")
        if self.skip_bad and (origins == ["mixture"] or self.task in TASKS):
            where = "to its parts" if self.task is None else "to rows of your own"
            raise ValueError(f"`skip_bad` leaves nothing out of a {origins[0]}: give it {where}")
        return self

    @model_serializer(mode="wrap")
    def _unless_unset(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave unset keys out that earlier runs did not know: the hashes of those are of sources without them."""
        fields: dict[str, Any] = write(self)
        return {key: value for key, value in fields.items() if key not in NEWER or value is not None}

    @classmethod
    def _origins(cls) -> tuple[str, ...]:
        return ("task", "file", "hub")


class Part(Source):
    """One source of a mixture."""

    weight: Positive | None = None
    """The relative frequency of the part's prompts; if no part has one, the number of its prompts."""


class Data(Source):
    """The problems to align on, ready preference pairs, or labelled feedback."""

    pairs: Place | None = None
    """A file, a saved data set, or a data set of the hub (`OWNER/NAME`), of pairs or of rated completions (docs/data.md):
    nothing is sampled."""
    feedback: Place | None = None
    """The same of labelled completions, `prompt, completion, label`, true for a good one: nothing is sampled."""
    mixture: Annotated[list[Part], Field(min_length=2)] | None = None
    """Several sources, whose prompts alternate by weight, so that every stretch has the same mix; `skip` and `limit`
    beside it count prompts of the mixture."""
    held_out: Annotated[int | float | Literal["auto"] | None, BeforeValidator(_number_or_share)] = None
    """Prompts that are not trained on, but measured before and after: a number, a share, or `auto`, the default
    without `evaluate.sets`. `auto` is 5%, at least 32 and at most 512, and never more than a fifth. All rows of a
    held-out prompt are held out with it."""

    @model_validator(mode="after")
    def _some_are_taken_as_they_stand(self) -> "Data":
        if self.is_ready and self.order != "given":
            rows = "pairs" if self.feedback is None else "labelled rows"
            raise ValueError(f"{rows} are taken in the order of their file: remove `order`, or sort the file")
        if self.mixture is not None and (self.order, self.split) != ("given", "train"):
            raise ValueError("a mixture's parts have an order and a split of their own: move them there")
        return self

    @model_validator(mode="after")
    def _all_parts_are_weighed_or_none(self) -> "Data":
        if len({part.weight is None for part in self.mixture or []}) > 1:
            raise ValueError(
                "some parts of the mixture have a weight and some have none: give it to all, or to none"
            )
        return self

    @classmethod
    def _origins(cls) -> tuple[str, ...]:
        return ("task", "file", "hub", "pairs", "feedback", "mixture")

    @property
    def is_ready(self) -> bool:
        """Return whether the completions are given, so that nothing is sampled or judged."""
        return self.pairs is not None or self.feedback is not None


class Kl(Source):
    """Prompts of another task, on which KL to the starting model is measured."""

    max_new_tokens: Tokens | None = None


class EvaluationSet(Source):
    num_generations: GenerationsOrZero | None = None
    """Overrides `evaluate.num_generations`."""
    by_answer: bool = False
    """Judge this set by its final answers, although `judge.function` judges the samples."""
