"""The recipe: a whole run as one strict YAML file, in pipeline order.

Precedence: defaults < file < `--set key=value`. An unknown key, a wrong type or an impossible
value raises `UserError` naming the key before anything heavy is imported.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from allo.errors import UserError

Density = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0)]

Criterion = Literal["warmup", "gradient", "fisher", "taylor", "magnitude", "bottom", "random"]
ScorerName = Literal["implicit", "privileged", "confidence", "edit", "uniform", "random"]
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
    skip: Annotated[int, Field(ge=0)] = 0
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

    @classmethod
    def _origins(cls) -> tuple[str, ...]:
        return ("task", "file", "hub", "pairs")


class Training(BaseModel):
    """Passed verbatim to `transformers.TrainingArguments`; its own check names unknown keys.

    The fields here are those whose defaults differ from transformers'.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    learning_rate: Positive = 1e-6
    num_train_epochs: Positive = 1.0
    per_device_train_batch_size: Count = 4
    gradient_accumulation_steps: Count = 8
    lr_scheduler_type: str = "cosine"
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    """Below 1: a share of all steps."""
    logging_steps: Positive = 1
    save_steps: Positive = 0.25
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """At least 2: the last whole checkpoint stays until the next one is whole."""
    report_to: str | list[str] = "none"


class SftTraining(Training):
    learning_rate: Positive = 2e-5
    warmup_steps: Annotated[float, Field(ge=0)] = 0.03


class ForgetTraining(Training):
    learning_rate: Positive = 5e-7
    gradient_accumulation_steps: Count = 32
    warmup_steps: Annotated[float, Field(ge=0)] = 0.03


class ImproveTraining(Training):
    learning_rate: Positive = 5e-6
    gradient_accumulation_steps: Count = 32


class Sft(Block):
    """Supervised fine-tuning on the sources' solutions, so that the policy knows the answer format."""

    sources: Annotated[list[Source], Field(min_length=1)]
    training: SftTraining = SftTraining()


class Sample(Block):
    """Completions of the starting model (method.md section 2)."""

    num_generations: Count = 10
    temperature: Temperature = 0.7
    top_p: Share = 0.95
    max_new_tokens: Count = 1024
    batch_size: Count = 128
    """Completions decoded together."""
    stop: list[str] = []


class Judge(Block):
    verifier: Literal["auto", "final_answer", "choice"] = "auto"
    """`auto`: `choice` where a prompt has choices, `final_answer` elsewhere."""


class Pairing(Block):
    max_pairs_per_prompt: Count = 5


class Locate(Block):
    """Which weights matter (method.md 1.1)."""

    criterion: Criterion = "warmup"
    beta: Positive = 0.1
    training: Training = Training()


class Score(Block):
    """Which tokens of wrong completions are wrong (method.md 1.2 and 4)."""

    scorer: ScorerName = "implicit"
    weights: WeightRule = "indicator"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """`indicator` marks tokens whose aligned probability lies below it."""
    batch_size: Count = 16


class Forget(Block):
    """Token-weighted NPO on the wrong completions (method.md 1.2)."""

    density: Density = 0.05
    beta: Positive = 0.1
    training: ForgetTraining = ForgetTraining()


class Improve(Block):
    """DPO with noisy rejected tokens filtered out (method.md 1.3)."""

    density: Density = 0.10
    keep: Share = 0.5
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    training: ImproveTraining = ImproveTraining()


class Kl(Source):
    """Prompts of another task, on which the distance to the starting model is measured."""

    max_new_tokens: Count | None = None


class EvaluationSet(Source):
    num_generations: Annotated[int, Field(ge=0)] | None = None
    """Instead of `evaluate.num_generations`."""


class Evaluate(Block):
    sets: Annotated[dict[str, EvaluationSet], Field(min_length=1)]
    num_generations: Annotated[int, Field(ge=0)] = 4
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


class Report(Block):
    title: str | None = None
    num_examples: Count = 6


class Recipe(Block):
    """One run, in pipeline order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The run's folder below `out`."""
    out: Path = Path("runs")
    seed: Annotated[int, Field(ge=0)] = 0
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
        if self.locate is None and self.max_density < 1:
            raise ValueError("locate is null: forget.density and improve.density must be 1.0")
        implicit = self.forget is not None and self.score is not None and self.score.scorer == "implicit"
        if implicit and (self.locate is None or self.locate.criterion != "warmup"):
            raise ValueError(
                "score.scorer 'implicit' reads the warm-up model: set locate.criterion to 'warmup'"
            )
        return self

    @property
    def max_density(self) -> float:
        """The largest share of the weights that a stage trains."""
        return max(stage.density for stage in (self.forget, self.improve) if stage)

    @property
    def run_folder(self) -> Path:
        return self.out / self.name


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: PyYAML's own rule reads `5e-6` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


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
        fields = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; found {type(fields).__name__}.")
    for override in overrides or []:
        _override(fields, override)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, root, problem) for problem in error.errors())) from error


def save_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default spelt out, as YAML that `load_recipe` reads back equal."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors."""
    return Recipe.model_json_schema()


def _override(fields: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, such as improve.density=0.2")
    *parents, last = key.split(".")
    target = fields
    for parent in parents:
        child = target.get(parent)
        if child is None:
            child = target[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent} is not a block of keys")
        target = child
    try:
        target[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {error}") from error


def _explain(path: Path, root: yaml.Node | None, problem: Any) -> str:
    location = [part for part in problem["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location) or "recipe"
    line = _line(root, location)
    where = f"{path}:{line}" if line else str(path)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        allowed = _allowed(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed here: {', '.join(allowed)}"
        return f"{where}: {key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: {key}: required key is missing"
    return f"{where}: {key}: {message}; found {json.dumps(problem['input'], default=str)[:200]}"


def _line(root: yaml.Node | None, location: list[str | int]) -> int | None:
    """The 1-based line of a key in the file, or None where it was not written there."""
    node, line = root, None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == part), None)
            if entry is None:
                return line
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _allowed(location: list[str | int]) -> list[str]:
    """The keys that the block at `location` knows."""
    block: type[BaseModel] = Recipe
    for part in location:
        if not isinstance(part, str) or part not in block.model_fields:
            continue
        block = next(iter(_blocks(block.model_fields[part].annotation)), block)
    return list(block.model_fields)


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks(part)]
