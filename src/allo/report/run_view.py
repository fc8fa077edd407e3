"""What the report knows of a run: the shapes of `08-eval.json`, `manifest.json` and the stage files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# A prompt as its files hold it: a text, or chat turns (role, content).
PromptText = str | list[dict[str, str]]


@dataclass(frozen=True)
class Accuracy:
    """Share of right completions in [0, 1] with its confidence interval; `num` completions."""

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
    """A reward model's mean reward, and the share of answers that beat the start's (ties count half)."""

    mean: Measured
    win_rate: Measured | None = None


@dataclass(frozen=True)
class SetOverlap:
    """Of `num` problems of a set, how many are training problems word for word, and how many nearly (both)."""

    num: int
    exact: int
    near: int


@dataclass(frozen=True)
class SetResult:
    """One model on one evaluation set. `pass_at`: k -> share; `mean_tokens`: per completion.

    `rewards`: of the greedy and of the sampled answers to prompts that have no right one.
    """

    num_prompts: int
    greedy: Accuracy | None = None
    sampled: Accuracy | None = None
    pass_at: dict[str, float] = field(default_factory=dict)
    mean_tokens: float | None = None
    rewards: dict[str, Rewards] = field(default_factory=dict)
    overlap: SetOverlap | None = None


@dataclass(frozen=True)
class Divergence:
    """KL to the start model in nats a token, with its interval, on the prompts of `set`."""

    set: str
    value: float
    low: float | None = None
    high: float | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class ModelResult:
    """One evaluated model; the fields of training are None for a model that was not trained here."""

    label: str
    sets: dict[str, SetResult]
    kl: Divergence | None = None
    trained_weights: int | None = None
    density: float | None = None
    seconds: float | None = None
    training_state_bytes: int | None = None


@dataclass(frozen=True)
class Answer:
    """One completion of an evaluation, judged."""

    text: str
    correct: bool | None = None
    reward: float | None = None


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
    """One figure of a task; `filter` names how the answer was read from a completion ("none": as it is)."""

    metric: str
    value: float
    filter: str = "none"
    stderr: float | None = None


@dataclass(frozen=True)
class HarnessResult:
    """One task as a harness measured it, and under what; `num_problems` of the task's `num_all`."""

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
    """`08-eval.json`: models by role, and their completions by role and set; what a harness measured, by role."""

    schema: int
    models: dict[str, ModelResult] = field(default_factory=dict)
    completions: dict[str, dict[str, list[Evaluated]]] = field(default_factory=dict)
    harness: dict[str, HarnessModel] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """What the manifest holds of one stage, as far as the report shows it."""

    seconds: float | None = None
    peak_memory_bytes: int | None = None
    counts: dict[str, object] = field(default_factory=dict)
    device: str | None = None
    hardware: str | None = None
    seed: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    outputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`."""

    schema: int
    name: str
    allo: str = ""
    stages: dict[str, StageRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class DensityRow:
    """Selected and all weights of one kind of tensor in one layer ("-": outside the layers)."""

    layer: str
    kind: str
    selected: int
    total: int


@dataclass(frozen=True)
class TokenSample:
    """A wrong completion, token by token; every list has one entry a token.

    `beside`: the probabilities of other scorers, by name. `wrong`: which tokens truly are, where that is known.
    """

    id: str
    prompt: PromptText | None
    tokens: list[str]
    scores: list[float]
    weights: list[float]
    beside: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[bool] | None = None


@dataclass(frozen=True)
class Bin:
    """Tokens of about the same score: its mean, the share of them that is truly aligned, how many."""

    predicted: float
    observed: float
    num: int


@dataclass(frozen=True)
class Calibration:
    """A scorer's probabilities held against the truth, from low to high."""

    scorer: str
    bins: tuple[Bin, ...]

    @property
    def error(self) -> float:
        """The expected calibration error: |predicted - observed|, averaged over the tokens."""
        apart = sum(each.num * abs(each.predicted - each.observed) for each in self.bins)
        return apart / sum(each.num for each in self.bins)


@dataclass(frozen=True)
class TokenCredit:
    """The first samples of the token scores, and how many tokens of all carry a weight.

    `scorer`: whose scores the weights follow from. `calibration`: where the truth is known, of every scorer.
    """

    samples: tuple[TokenSample, ...]
    num_tokens: int
    num_weighted: int
    scorer: str = ""
    calibration: tuple[Calibration, ...] = ()


@dataclass(frozen=True)
class Side:
    """Who answered. Of a run's model also which one, which of its answers, and the hash of those."""

    name: str
    model: str | None = None
    answers: str | None = None
    answers_sha256: str | None = None


@dataclass(frozen=True)
class JudgedBy:
    """The judge, by its name at the server."""

    model: str


@dataclass(frozen=True)
class JudgedSummary:
    """The figures of a judge's verdicts; None where they do not say."""

    num_prompts: int
    win_rate: Rate | None = None
    length_controlled: Rate | None = None
    position_bias: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class JudgedCounts:
    """`unread`: replies without a verdict, by the reason."""

    prompts: int
    unread: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """`judged-....json`, as far as the report shows it."""

    schema: int
    set: str
    model: Side
    baseline: Side
    judge: JudgedBy
    summary: JudgedSummary
    counts: JudgedCounts


@dataclass(frozen=True)
class RunView:
    """One run as the report shows it: data only, everything optional but the evaluation.

    `curves`: stage -> logged steps, each a mapping from metric to value.
    `masks`: stage -> density rows. `recipe`: the resolved recipe's YAML; `base`: the model it names.
    `borrowed_start`: the start as another run evaluated it, for a run that did not. `judged`: what judges prefer;
    `judged_before`: the names of records of other answers than the evaluation's.
    """

    name: str
    evaluation: Evaluation
    manifest: Manifest
    curves: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)
    masks: Mapping[str, tuple[DensityRow, ...]] = field(default_factory=dict)
    credit: TokenCredit | None = None
    recipe: str | None = None
    base: str = ""
    borrowed_start: ModelResult | None = None
    judged: tuple[Judged, ...] = ()
    judged_before: tuple[str, ...] = ()

    @property
    def before(self) -> ModelResult | None:
        """The model that training started from, where this run or another of the report evaluated it."""
        return self.evaluation.models.get("start", self.borrowed_start)

    @property
    def start_hash(self) -> str | None:
        """The hash of the start model's files."""
        sft = self.manifest.stages.get("sft")
        return sft.outputs.get("00-sft") if sft else None

    @property
    def after_role(self) -> str:
        """The role of the run's result: "aligned", else the last model evaluated."""
        models = self.evaluation.models
        return "aligned" if "aligned" in models else list(models)[-1]

    @property
    def after(self) -> ModelResult:
        """The run's result."""
        return self.evaluation.models[self.after_role]
