"""The recipe: a whole run as one strict YAML file, in pipeline order.

Precedence: defaults < file < `--set key=value`. An unknown key, a wrong type or an impossible
value raises `UserError` naming the key before anything heavy is imported.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from allo.errors import UserError
from allo.granularity import PATTERN, WEIGHT, granularity_name
from allo.recipe_errors import explain
from allo.recipe_numbers import (
    Count,
    CountOrZero,
    Density,
    NotNegative,
    Number,
    Positive,
    SetName,
    Share,
)
from allo.recipe_training import ForgetTraining, ImproveTraining, SftTraining, Training
from allo.recipe_yaml import override, parse

GranularityName = Annotated[
    str, AfterValidator(granularity_name), Field(json_schema_extra={"pattern": f"^({PATTERN})$"})
]
Criterion = Literal["warmup", "warmup_fused", "gradient", "fisher", "taylor", "magnitude", "bottom", "random"]
ScorerName = Literal["implicit", "privileged", "rewriter", "confidence", "edit", "uniform", "random"]
WeightRule = Literal["indicator", "soft", "as_released", "rlmec"]
TaskName = Literal["planted_flaws", "gsm8k", "ecqa", "qasc", "openbookqa", "mawps"]


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Block):
    """Where prompts come from: exactly one of `task`, `file` and `hub`."""

    task: TaskName | None = None
    file: Path | None = None
    """JSONL or Parquet with `prompt, answer?, solution?, choices?, id?`."""
    hub: str | None = None
    split: str = "train"
    order: Literal["given", "shuffled", "shortest"] = "given"
    skip: CountOrZero = 0
    limit: Count | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        origins = [name for name in self._origins() if getattr(self, name) is not None]
        if len(origins) != 1:
            found = " and ".join(origins) or "none"
            raise ValueError(f"needs exactly one of {', '.join(self._origins())}; found {found}")
        return self

    @classmethod
    def _origins(cls) -> tuple[str, ...]:
        return ("task", "file", "hub")


class Data(Source):
    """The problems to align on, or ready preference pairs."""

    pairs: Path | None = None
    """JSONL or Parquet with `prompt, chosen, rejected` (TRL's formats): nothing is sampled."""

    @model_validator(mode="after")
    def _pairs_are_taken_as_they_stand(self) -> "Data":
        if self.pairs is not None and self.order != "given":
            raise ValueError("pairs are taken in the order of their file: remove `order`, or sort the file")
        return self

    @classmethod
    def _origins(cls) -> tuple[str, ...]:
        return ("task", "file", "hub", "pairs")


class Sft(Block):
    """Supervised fine-tuning on the sources' solutions, so that the policy knows the answer format."""

    sources: Annotated[list[Source], Field(min_length=1)]
    training: SftTraining = SftTraining()


class Sample(Block):
    """Completions of the starting model (method.md section 2)."""

    num_generations: Count = 10
    temperature: NotNegative = 0.7
    """0 takes the most probable token each time."""
    top_p: Share = 0.95
    max_new_tokens: Count = 1024
    """Of a completion, on top of its prompt; below `max_length`, or the longest could not be trained on."""
    batch_size: Count = 128
    """Completions decoded together."""
    stop: list[str] = []

    @model_validator(mode="after")
    def _generations_differ(self) -> "Sample":
        if self.temperature == 0 and self.num_generations > 1:
            raise ValueError(
                f"at temperature 0 all {self.num_generations} completions of a prompt would be the same: "
                "raise temperature, or set num_generations to 1"
            )
        return self


class Judge(Block):
    verifier: Literal["auto", "final_answer", "choice"] = "auto"
    """`auto`: `choice` where a prompt has choices, `final_answer` elsewhere."""


class Pairing(Block):
    max_pairs_per_prompt: Count = 5


class Locate(Block):
    """Which weights matter (method.md 1.1)."""

    criterion: Criterion = "warmup"
    """`warmup` trains all weights with an optimizer's state; `warmup_fused` updates each tensor inside the
    backward pass; `gradient`, `fisher` and `taylor` sum up over the pairs at the starting model."""
    granularity: GranularityName = WEIGHT
    """Whole rows, columns or blocks are selected by the root mean square of their scores. Rows and columns of
    linear layers make the backward pass itself cheaper."""
    beta: Positive = 0.1
    accumulate: Literal["float32", "bfloat16"] = "float32"
    """The sums of `gradient`, `fisher` and `taylor` in host memory: 4 or 2 bytes a weight."""
    max_tokens_per_batch: Count | None = None
    """As of forgetting and improving; `fisher` takes single pairs whatever it says, and `warmup_fused` makes
    an update of each micro-batch."""
    training: Training = Training()

    @model_validator(mode="after")
    def _bottom_ranks_weights(self) -> "Locate":
        if self.criterion == "bottom" and self.granularity != WEIGHT:
            raise ValueError(
                "criterion 'bottom' mirrors the scores of single weights, which have no norm: "
                "set granularity to weight"
            )
        return self


class Score(Block):
    """Which tokens of wrong completions are wrong (method.md 1.2 and 4)."""

    scorer: ScorerName = "implicit"
    rewriter: Path | None = None
    """The folder that `allo rewriter train` wrote, for the scorer `rewriter`."""
    weights: WeightRule = "indicator"
    threshold: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """`indicator` marks tokens whose aligned probability lies below it."""
    batch_size: Count = 16

    @model_validator(mode="after")
    def _rewriter_is_named(self) -> "Score":
        if self.scorer == "rewriter" and self.rewriter is None:
            raise ValueError(
                "scorer 'rewriter' needs the folder of a rewriter: set score.rewriter (see docs/rewriter.md)"
            )
        return self


class Steps(Block):
    """How a stage's optimizer steps are computed; what they learn is the same."""

    max_tokens_per_batch: Count | None = None
    """Tokens of a micro-batch, padding included, in place of `per_device_train_batch_size` rows; a step is
    still over `per_device_train_batch_size * gradient_accumulation_steps` rows."""
    reference: Literal["swap", "precomputed"] = "swap"
    """`swap`: the reference's weights are put in place once a step, for a pass over its rows. `precomputed`: its
    log-probs are computed once, which pays from the second epoch on, and where its slot is too large."""
    lean: bool = False
    """A trained weight takes 8 bytes of training state in place of 20: AdamW's moments in one byte each, a
    16-bit residual in place of an fp32 master, a bf16 gradient, and the reference's weights in host memory.
    What is learnt is the same up to rounding."""


class Forget(Steps):
    """Token-weighted NPO on the wrong completions (method.md 1.2)."""

    density: Density = 0.05
    beta: Positive = 0.1
    training: ForgetTraining = ForgetTraining()


class Improve(Steps):
    """DPO with noisy rejected tokens filtered out (method.md 1.3)."""

    density: Density = 0.10
    keep: Share = 0.5
    beta: Positive = 0.1
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0
    shared_prefix: bool = True
    """A pair's prompt is computed once, with both answers in one row, where the model's attention allows it."""
    training: ImproveTraining = ImproveTraining()


class Kl(Source):
    """Prompts of another task, on which the distance to the starting model is measured."""

    max_new_tokens: Count | None = None


class EvaluationSet(Source):
    num_generations: CountOrZero | None = None
    """Instead of `evaluate.num_generations`."""


class Evaluate(Block):
    sets: Annotated[dict[SetName, EvaluationSet], Field(min_length=1)]
    num_generations: CountOrZero = 4
    """Sampled completions a prompt; 0 measures greedy accuracy alone."""
    greedy: bool = True
    temperature: Positive = 0.7
    top_p: Share = 0.95
    max_new_tokens: Count = 1024
    batch_size: Count = 128
    kl: Kl | None = None
    start: bool = True
    """Evaluate the starting model too; its completions are the other models' baseline."""
    forgotten: bool = False
    """Also evaluate the model between forgetting and improving."""

    @model_validator(mode="after")
    def _every_set_is_measured(self) -> "Evaluate":
        for name in self.sets:
            if not self.greedy and self.generations(name) == 0:
                raise ValueError(
                    f"set {name!r} has no completion to measure: set greedy to true, or num_generations above 0"
                )
        return self

    def generations(self, name: str) -> int:
        """Sampled completions a prompt of a set."""
        own = self.sets[name].num_generations
        return self.num_generations if own is None else own

    @property
    def kl_tokens(self) -> int:
        """The longest continuation on which the distance is measured."""
        return (self.kl and self.kl.max_new_tokens) or self.max_new_tokens


class Report(Block):
    title: str | None = None
    num_examples: Count = 6


class Recipe(Block):
    """One run, in pipeline order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The run's folder below `out`."""
    out: Path = Path("runs")
    seed: CountOrZero = 0
    data_seed: CountOrZero | None = None
    """The seed of all stages before training, and of the order of prompts; `seed` where it is absent. Runs that
    differ in `seed` alone then share their samples, pairs, importance and token scores."""
    model: str
    """A folder, a hub id, or a GGUF file."""
    trust_remote_code: bool = False
    pad_token: str | None = None
    """Names a pad token for a tokenizer that has none (often its EOS)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    chat: bool = False
    """Wrap string prompts as one user message of the tokenizer's chat template."""
    max_length: Count = 1200
    """Tokens of a training row, prompt and completion together: a longer row loses the beginning of its
    prompt, and is dropped where the completion alone does not fit. Also of a prompt alone where completions
    are sampled; `max_new_tokens` come on top."""

    data_folder: Path | None = None
    """Local rows of the tasks, `<data_folder>/<task>/<split>.jsonl[.gz]`, read instead of the hub."""
    data: Data
    sft: Sft | None = None
    sample: Sample = Sample()
    judge: Judge = Judge()
    pair: Pairing = Pairing()
    locate: Locate | None = Locate()
    score: Score | None = Score()
    forget: Forget | None = Forget()
    improve: Improve | None = Improve()
    evaluate: Evaluate
    report: Report = Report()

    @model_validator(mode="after")
    def _stages_fit(self) -> "Recipe":
        if self.forget is None and self.improve is None:
            raise ValueError("forget and improve are both null: nothing would be trained")
        if self.forget and self.score is None:
            raise ValueError("forget needs score (set `forget: null` to leave both out)")
        if self.data.pairs is None and self.sample.max_new_tokens >= self.max_length:
            raise ValueError(
                f"sample.max_new_tokens {self.sample.max_new_tokens} must be below max_length "
                f"{self.max_length}: a completion of that length fits no training row"
            )
        if self.locate is None and self.max_density < 1:
            raise ValueError("locate is null: forget.density and improve.density must be 1.0")
        if self.reads_warmup and not (self.locate and self.locate.criterion in ("warmup", "warmup_fused")):
            raise ValueError(
                "score.scorer 'implicit' reads a warm-up's model: set locate.criterion to warmup or warmup_fused"
            )
        return self

    @property
    def seed_of_data(self) -> int:
        """The seed of every stage up to scoring."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def max_density(self) -> float:
        """The largest share of the weights that a stage trains."""
        return max(stage.density for stage in (self.forget, self.improve) if stage)

    @property
    def reads_warmup(self) -> bool:
        """Whether scoring needs the warm-up model's weights."""
        return self.forget is not None and self.score is not None and self.score.scorer == "implicit"

    @property
    def run_folder(self) -> Path:
        return self.out / self.name


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe.

    `overrides` are `dotted.key=value` strings; the value is parsed as YAML.
    Raises `UserError` for a missing file, bad YAML, and for each key that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the recipe ({error.strerror}). Give the path of a YAML file."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error.reason}). Give the path of a YAML file.") from error
    try:
        root = yaml.compose(text)
        fields = parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; found {type(fields).__name__}.")
    for text in overrides or []:
        override(fields, text)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError(
            "\n".join(explain(Recipe, path, root, problem) for problem in error.errors())
        ) from error


def save_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default spelt out, as YAML that `load_recipe` reads back equal."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors."""
    return Recipe.model_json_schema()
