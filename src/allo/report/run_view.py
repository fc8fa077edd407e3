"""The report's data about a run: the shapes of `manifest.json` and the stages' files, beside its evaluation's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from allo.files.evaluation import Evaluation, ModelResult, PromptText, Rate

if TYPE_CHECKING:
    from allo.weights.param_mask import MaskRow


@dataclass(frozen=True)
class StageRecord:
    """The manifest's record of one stage, as far as the report shows it."""

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
    """The content of `manifest.json`."""

    schema: int
    name: str
    allo: str = ""
    stages: dict[str, StageRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenSample:
    """A wrong completion, token by token; every list has one entry per token.

    `beside` holds other scorers' probabilities by name; `wrong` marks the tokens that are truly wrong, if known.
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
    """Tokens with similar scores: their mean score, their truly aligned share, and their number."""

    predicted: float
    observed: float
    num: int


@dataclass(frozen=True)
class Calibration:
    """A scorer's probabilities beside the observed frequencies, from low to high."""

    scorer: str
    bins: tuple[Bin, ...]

    @property
    def error(self) -> float:
        """Return the expected calibration error: |predicted - observed|, averaged over the tokens."""
        apart = sum(each.num * abs(each.predicted - each.observed) for each in self.bins)
        return apart / sum(each.num for each in self.bins)


@dataclass(frozen=True)
class TokenCredit:
    """The first samples of the token scores, and the number of tokens with a weight.

    `scorer` names the scorer that the weights follow. `calibration` covers every scorer, if the truth is known.
    """

    samples: tuple[TokenSample, ...]
    num_tokens: int
    num_weighted: int
    scorer: str = ""
    calibration: tuple[Calibration, ...] = ()


@dataclass(frozen=True)
class Side:
    """The author of answers. A run's model also has its name in the run, its kind of answers, and their hash."""

    name: str
    model: str | None = None
    answers: str | None = None
    answers_sha256: str | None = None


@dataclass(frozen=True)
class JudgedBy:
    """The judge, by its name on the server."""

    model: str


@dataclass(frozen=True)
class JudgedSummary:
    """The figures of a judge's verdicts; None if they allow no figure."""

    num_prompts: int
    win_rate: Rate | None = None
    length_controlled: Rate | None = None
    position_bias: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class JudgedCounts:
    """The numbers of prompts and, by reason, of unread replies: those without a verdict."""

    prompts: int
    unread: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """The content of `judged-....json`, as far as the report shows it."""

    schema: int
    set: str
    model: Side
    baseline: Side
    judge: JudgedBy
    summary: JudgedSummary
    counts: JudgedCounts


@dataclass(frozen=True)
class RunView:
    """One run as the report shows it: data only, all optional except the evaluation.

    `curves` maps a stage to its logged steps, each from metric to value; `masks` maps a stage to density rows, and
    `experts` to those of a mixture's experts. `among` has the patterns of the tensors that a mask's weights were selected
    in, and the number of weights in these. `recipe` is the resolved recipe's YAML, `settings` its keys and `base` its model. `borrowed_start` is the start as another run
    evaluated it, for a run that did not. `judged` holds judges' records; `judged_before` names records of outdated
    answers. `uses` says what can be done with the run's model: (purpose, command in the run's folder).
    """

    name: str
    evaluation: Evaluation
    manifest: Manifest
    curves: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)
    masks: Mapping[str, "tuple[MaskRow, ...]"] = field(default_factory=dict)
    experts: Mapping[str, "tuple[MaskRow, ...]"] = field(default_factory=dict)
    among: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    credit: TokenCredit | None = None
    recipe: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    base: str = ""
    borrowed_start: ModelResult | None = None
    judged: tuple[Judged, ...] = ()
    judged_before: tuple[str, ...] = ()
    uses: tuple[tuple[str, str], ...] = ()

    @property
    def before(self) -> ModelResult | None:
        """Return the model that training started from, if this run or another of the report evaluated it."""
        return self.evaluation.models.get("start", self.borrowed_start)

    @property
    def start_hash(self) -> str | None:
        """Return the hash of the start model's files."""
        sft = self.manifest.stages.get("sft")
        return sft.outputs.get("00-sft") if sft else None

    @property
    def after_role(self) -> str:
        """Return the role of the run's result: "aligned", otherwise the last model evaluated."""
        models = self.evaluation.models
        return "aligned" if "aligned" in models else list(models)[-1]

    @property
    def after(self) -> ModelResult:
        """Return the run's result."""
        return self.evaluation.models[self.after_role]
