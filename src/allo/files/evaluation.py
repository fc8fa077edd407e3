"""The content of `08-eval.json`, read for the report and for judges of answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from allo.errors import UserError
from allo.files.json_forms import checked, unsealed
from allo.files.json_text import parse_json
from allo.files.records import Message

SCHEMA = 1
FEEDBACK = "feedback"
"""The key of a model's results on held-out labelled completions."""
PromptText = str | list[Message]
Form = TypeVar("Form")


@dataclass(frozen=True)
class Accuracy:
    """Share of right completions in [0, 1] with its confidence interval, over `num` completions."""

    accuracy: float
    low: float
    high: float
    num: int


@dataclass(frozen=True)
class Rate:
    """A mean, such as a win rate in [0, 1], with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured(Rate):
    """A mean of `num` observations."""

    num: int


@dataclass(frozen=True)
class Rewards:
    """The mean reward by a reward model or a function, and the share of answers that beat the start's (ties count half)."""

    mean: Measured
    win_rate: Measured | None = None


@dataclass(frozen=True)
class Overlap:
    """The number of a set's problems, and how many of them occur in training, word for word or nearly."""

    num: int
    exact: int
    near: int


@dataclass(frozen=True)
class SetResult:
    """One model's results on one evaluation set. `pass_at` maps k to a share; `mean_tokens` is per completion.

    `rewards` are those of greedy and sampled answers, for prompts that no accuracy measures.
    """

    num_prompts: int
    greedy: Accuracy | None = None
    sampled: Accuracy | None = None
    pass_at: dict[str, float] = field(default_factory=dict)
    mean_tokens: float | None = None
    rewards: dict[str, Rewards] = field(default_factory=dict)
    overlap: Overlap | None = None


@dataclass(frozen=True)
class Divergence:
    """KL to the start model in nats per token, with its interval, on the prompts of `set`."""

    set: str
    value: float
    low: float | None = None
    high: float | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class Change:
    """The mean change in log-likelihood from the starting model, in nats, of an answer and of a token."""

    answer: Rate
    token: Rate


@dataclass(frozen=True)
class HeldOut:
    """One model's results on held-out pairs (`stages/likelihood.py`); the starting model has no changes.

    `chosen_logp` and `rejected_logp` are an answer's mean log-likelihoods; older files lack them.
    """

    num_pairs: int
    num_prompts: int
    likelihood_accuracy: Rate
    num_dropped: int = 0
    beta: float | None = None
    reward_accuracy: Rate | None = None
    margin: Rate | None = None
    chosen: Change | None = None
    rejected: Change | None = None
    chosen_logp: Rate | None = None
    rejected_logp: Rate | None = None
    overlap: Overlap | None = None


@dataclass(frozen=True)
class HeldOutFeedback:
    """One model's results on held-out labelled completions (`stages/likelihood.py`); the starting model has no changes.

    An AUC is the chance that a good completion stands above a bad one; None if all have one label.
    """

    num_good: int
    num_bad: int
    num_prompts: int
    likelihood_auc: Rate | None
    num_dropped: int = 0
    beta: float | None = None
    reward_auc: Rate | None = None
    good: Change | None = None
    bad: Change | None = None
    good_logp: Rate | None = None
    bad_logp: Rate | None = None
    overlap: Overlap | None = None


@dataclass(frozen=True)
class ModelResult:
    """One evaluated model; training fields are None for a model that was not trained here."""

    label: str
    sets: dict[str, SetResult]
    kl: Divergence | None = None
    held_out: HeldOut | None = None
    feedback: HeldOutFeedback | None = None
    trained_weights: int | None = None
    density: float | None = None
    seconds: float | None = None
    training_state_bytes: int | None = None


@dataclass(frozen=True)
class Answer:
    """One judged completion of an evaluation."""

    text: str
    correct: bool | None = None
    reward: float | None = None
    num_tokens: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Evaluated:
    """One prompt of an evaluation set with a model's completions."""

    prompt_id: str
    prompt: PromptText
    answer: str | None = None
    greedy: Answer | None = None
    sampled: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class HarnessMetric:
    """One figure of a task; `filter` says how the answer was read from a completion ("none": unchanged)."""

    metric: str
    value: float
    filter: str = "none"
    stderr: float | None = None


@dataclass(frozen=True)
class HarnessResult:
    """One task as a harness measured it, with its settings; `num_problems` of the task's `num_all`."""

    harness: str
    harness_version: str
    task: str
    metrics: list[HarnessMetric]
    version: str | float | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    num_problems: int | None = None
    num_all: int | None = None
    chat_template: bool = False
    dtype: str | None = None
    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class HarnessModel:
    """A model's results from a harness."""

    label: str
    results: list[HarnessResult]


@dataclass(frozen=True)
class Evaluation:
    """`08-eval.json`: models by role, their completions by role and set, and harness results by role."""

    schema: int
    models: dict[str, ModelResult] = field(default_factory=dict)
    completions: dict[str, dict[str, list[Evaluated]]] = field(default_factory=dict)
    harness: dict[str, HarnessModel] = field(default_factory=dict)


def read_of_schema(path: Path, form: type[Form]) -> Form:
    """Read a file of results. Raises `UserError` for damage, another form, and another version's `schema`."""
    advice = "Delete it and run its stage again."
    content = parse_json(path.read_bytes(), place=str(path), advice=advice, lenient=True)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{path}: `schema` is {schema!r}; this version of allo reads {SCHEMA}. "
            "Write the file again with this version."
        )
    return checked(unsealed(content, place=str(path), advice=advice), form, place=str(path), advice=advice)
