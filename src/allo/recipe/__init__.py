"""The recipe: a whole run as one strict YAML file, in pipeline order.

Precedence: defaults < file < `--set key=value`. An unknown key, a wrong type or an impossible value raises
`UserError` naming the key, before anything heavy is imported.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from allo.errors import UserError
from allo.recipe.backends import BACKENDS
from allo.recipe.compare import Compare
from allo.recipe.criteria import CRITERIA
from allo.recipe.data_fit import check_data_fits
from allo.recipe.errors import explain
from allo.recipe.evaluate import Evaluate, with_held_out
from allo.recipe.judge import Judge, Pairing
from allo.recipe.locate import Locate as Locate
from allo.recipe.losses import (
    Filter,
    ForgettingLossName,
    LossName,
    LossSettings,
    check_answer_loss,
    kinds_seen_by,
)
from allo.recipe.numbers import (
    Count,
    Density,
    Name,
    NotNegative,
    Place,
    Positive,
    Seed,
    Share,
    Times,
    Tokens,
)
from allo.recipe.presets import PresetName, with_preset
from allo.recipe.sample import Sample
from allo.recipe.scores import Score
from allo.recipe.sharding import shards_fault
from allo.recipe.sources import HELD_OUT, Block, Data, Source
from allo.recipe.text import dump, override, parse, read_text
from allo.recipe.trainers import TRAINERS, Trainer, TrainerName
from allo.recipe.training import ForgetTraining, Group, ImproveTraining, SftTraining

NEEDS_WARMUP = "scorer 'implicit' reads a warm-up's model: set locate.criterion to warmup or warmup_fused"
GONE = {"momentum": 0, "round_prompts": "same", "order": "forget_first"}
"""Keys that recipes no longer have (experiments/README.md), with the values that changed nothing."""
# torch's other devices, such as "meta", hold no numbers.
Device = Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu|npu|hpu|mlu|musa)(:[0-9]{1,3})?)$")]


class Sft(Block):
    """Supervised fine-tuning on the sources' solutions, so that the policy knows the answer format."""

    sources: Annotated[list[Source], Field(min_length=1)]
    training: SftTraining = SftTraining()


class Steps(Block):
    """The computation of a stage's optimizer steps, which does not change what they learn."""

    max_tokens_per_batch: Tokens | None = None
    """Tokens of a micro-batch, padding included, instead of `per_device_train_batch_size` rows. A step still covers
    `per_device_train_batch_size * gradient_accumulation_steps` rows."""
    reference: Literal["swap", "precomputed"] = "swap"
    """`swap` puts the reference's weights in place once per step, for a pass over its rows. `precomputed` computes its
    log-probs once, which pays from the second epoch on, or if its slot is too large."""
    group: Group = "none"
    """`prompt` fills a step with all rows of its prompts and reads each prompt and distinct completion once. It saves
    time if prompts have several rows, and changes the order of rows."""
    lean: bool = False
    """Training state takes 8 bytes per trained weight instead of 20: AdamW's moments in one byte each, a 16-bit
    residual instead of an fp32 master, a bf16 gradient, and the reference's weights in host memory. Results are the
    same up to rounding."""

    @model_serializer(mode="wrap")
    def _without_new_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `group` at its default, so that runs from before this key stay valid."""
        return {key: value for key, value in handler(self).items() if (key, value) != ("group", "none")}


class Forget(Steps):
    """Token-weighted NPO on the wrong completions (method.md 1.2)."""

    density: Density = 0.05
    beta: Positive = 0.1
    loss: ForgettingLossName = "token"
    """NPO of each weighted token (`token`), or of the weighted sum of a completion's log-ratios (`sequence`). Without a
    reference: `unlikelihood` of each weighted token, which has no `beta`, and `simnpo` of their mean log-prob,
    which needs a `beta` of about 1 or more. A function of yours is named by `file.py:function` (docs/extending.md)."""
    until: Share | None = None
    """Stop once the weighted tokens' mean probability falls below this."""
    training: ForgetTraining = ForgetTraining()


class Improve(Steps):
    """DPO with noisy rejected tokens filtered out (method.md 1.3), another loss under the same mask, or a method to
    compare with."""

    trainer: TrainerName = "selected"
    """`selected` trains the located weights. The others train through TRL and read only `beta` and `training`, which
    may name any field of TRL's own config. `lora` and `shira` are DPO with an adapter on all linear layers; if
    `training.loss_type` is robust, TRL also reads the label_smoothing of `loss_settings`. `rloo` and `grpo` sample
    with the settings of `sample` and train all weights by the rewards of `judge`. A batch's rows are then
    completions."""
    adapter_rank: Count | None = None
    """The rank for `lora` and `shira`; by default, the one whose number of trained weights is nearest to `density`.
    """
    density: Density = 0.10
    loss: LossName = "dpo"
    """`dpo`, `ipo`, `bco`, `apo_zero` or `simpo` of each pair, or your own function, `file.py:function`. `sft` learns
    the gold solutions of the pairs' prompts, `rft` the distinct right samples. With `data.feedback`, `kto` or `bco` of
    each labelled completion, your own function, or `rft` of the good ones."""
    loss_settings: LossSettings = {}
    """The loss's own settings, with their defaults: `dpo` label_smoothing 0; `ipo` length_average true; `simpo`
    gamma 1.0; `kto` desirable_weight 1.0 and undesirable_weight 1.0."""
    keep: Share = 0.5
    """The share of a rejected or bad completion's tokens that count; 1.0 for `simpo`, `sft` and `rft`."""
    filter: Filter = "lowest"
    """The tokens that count: those of lowest or highest log-ratio, or random ones."""
    beta: Positive = 0.1
    """`simpo` needs 2.0 to 2.5; `sft` and `rft` have none."""
    anchor: NotNegative = 0.0
    """The factor of an added term, the chosen answer's mean negative log-likelihood per token (RPO; its paper takes 1).
    """
    shared_prefix: bool = True
    """Compute a pair's prompt once, with both answers in one row, if the model's attention allows it."""
    training: ImproveTraining = ImproveTraining()

    @model_validator(mode="after")
    def _keys_are_the_trainers(self) -> "Improve":
        if self.adapter_rank is not None and not self.trained_by.has_adapter:
            raise ValueError(f"trainer {self.trainer!r} has no adapter: remove adapter_rank")
        if not self.trained_by.selects and (self.loss != "dpo" or self.anchor):
            raise ValueError(f"trainer {self.trainer!r} has a loss of its own: remove loss and anchor")
        return self

    @model_validator(mode="after")
    def _single_answers_have_no_pair(self) -> "Improve":
        check_answer_loss(self.loss, self.loss_settings, keep=self.keep, anchor=self.anchor)
        return self

    @property
    def trained_by(self) -> Trainer:
        return TRAINERS[self.trainer]

    @property
    def sees(self) -> frozenset[str]:
        """The kinds of training data that it learns from."""
        return kinds_seen_by(self.loss) if self.trained_by.sees is None else self.trained_by.sees


def trains_here(block: Block) -> bool:
    """Return whether allo's own trainers train what a block says, not those of another library."""
    return not isinstance(block, Improve) or block.trained_by.selects


class Report(Block):
    title: str | None = None
    num_examples: Count = 6


class Recipe(Block):
    """One run, in pipeline order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    """The name of the run's folder below `out`."""
    out: Place = Path("runs")
    seed: Seed = 0
    data_seed: Seed | None = None
    """The seed of all stages before training, and of the order of prompts; by default `seed`. Runs that differ only
    in `seed` then share their samples, pairs, importance and token scores."""
    preset: PresetName | None = None
    """`paper`: the settings of the published method for the keys of `locate` and `score` that the recipe leaves out."""
    model: Name
    """A folder, a hub id, or a GGUF file."""
    trust_remote_code: bool = False
    pad_token: Name | None = None
    """The pad token for a tokenizer that has none (often its EOS)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: Device = "auto"
    chat: bool = False
    """Wrap string prompts as one user message of the tokenizer's chat template."""
    max_length: Tokens = 1200
    """Tokens of a training row, prompt and completion together. A longer row loses the beginning of its prompt, and
    is dropped if the completion alone does not fit. In sampling, the limit of the prompt alone; `max_new_tokens` come
    on top."""
    shards: Count | None = None
    """The parts of a model that no GPU holds, one a process (`--processes` is a multiple of it). A sharded model does not sample:
    samples come from a server, and evaluation measures held-out rows alone."""
    rounds: Times = 1
    """The number of alignments, from sampling to improving, each on fresh samples of the previous one's model. The
    first start and the last model are evaluated."""
    relocate: bool = True
    """Locate in every round; if false, later rounds keep the first round's importance."""

    data_folder: Place | None = None
    """A folder of the tasks' local rows, `<data_folder>/<task>/<split>.jsonl[.gz]`, read instead of the hub."""
    data: Data
    sft: Sft | None = None
    sample: Sample = Sample()
    judge: Judge = Judge()
    pair: Pairing = Pairing()
    locate: Locate | None = Locate()
    score: Score | None = Score()
    forget: Forget | None = Forget()
    improve: Improve | None = Improve()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    compare: Compare | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_gone(cls, fields: Any) -> Any:
        """Ignore keys that are gone at their old defaults, since the records of earlier runs and trials have them.

        A preset fills in keys that are left out. Without evaluation sets, rows are held out.
        """
        if not isinstance(fields, dict):
            return fields
        kept = {key: value for key, value in fields.items() if key not in GONE or value != GONE[key]}
        return with_held_out(with_preset(kept))

    @model_validator(mode="after")
    def _stages_fit(self) -> "Recipe":
        if not self.training_stages:
            raise ValueError("forget and improve are both null: nothing would be trained")
        if self.data.held_out and HELD_OUT in self.evaluate.sets:
            raise ValueError(f"evaluate.sets.{HELD_OUT} has the name of data.held_out: give it another")
        self.evaluate.check_measures(self.set_names)
        if self.forget and self.score is None:
            raise ValueError("forget needs score (set `forget: null` to leave both out)")
        if not self.data.is_ready and self.sample.max_new_tokens >= self.max_length:
            raise ValueError(
                f"sample.max_new_tokens {self.sample.max_new_tokens} must be below max_length "
                f"{self.max_length}: a completion of that length fits no training row"
            )
        if self.improve and not self.improve.trained_by.selects:
            self._fits_trainer(self.improve)
        elif self.locate is None and self.max_density < 1:
            raise ValueError("locate is null: forget.density and improve.density must be 1.0")
        criterion = self.locate and CRITERIA.get(self.locate.criterion)  # one of your own is not loaded yet
        if self.reads_warmup and (self.locate is None or (criterion and not criterion.trains)):
            raise ValueError(NEEDS_WARMUP)
        return self

    @model_validator(mode="after")
    def _data_fits(self) -> "Recipe":
        check_data_fits(self)
        return self

    @model_validator(mode="after")
    def _judge_fits(self) -> "Recipe":
        if self.pair.margin and self.data.feedback is not None:
            raise ValueError("pair.margin chooses pairs, and labelled rows are taken as they are: remove it")
        rewarded = self.judge.reward_model is not None or self.judge.function or self.data.pairs is not None
        if self.pair.margin and not rewarded:  # ready pairs may be rated; their rows will tell
            raise ValueError(
                "pair.margin is a difference of rewards: set judge.reward_model or judge.function, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _shards_fit(self) -> "Recipe":
        if self.shards is not None and (fault := shards_fault(self)):
            raise ValueError(f"shards: {fault}")
        return self

    @model_validator(mode="after")
    def _rounds_fit(self) -> "Recipe":
        if self.rounds == 1:
            return self
        if self.data.is_ready:
            rows = (
                "pairs is one set of ready pairs"
                if self.data.feedback is None
                else "feedback is one set of rows"
            )
            raise ValueError(f"data.{rows}, but rounds sample anew: set rounds to 1")
        if BACKENDS[self.sample.backend].asks_servers:
            others = " or ".join(each.name for each in BACKENDS.values() if not each.asks_servers)
            raise ValueError(
                f"rounds sample from models that no server has yet: set sample.backend to {others}, or rounds to 1"
            )
        if not self.relocate and self.score and self.reads_warmup:
            raise ValueError(
                "relocate is false, so later rounds train no warm-up, which score.scorer "
                f"{self.score.warmup_reader!r} reads: choose another scorer, such as confidence, or set relocate to true"
            )
        if self.evaluate.forgotten:
            raise ValueError("evaluate.forgotten is for a single round: set it to false, or rounds to 1")
        return self

    def _fits_trainer(self, improve: Improve) -> None:
        name = f"improve.trainer {improve.trainer!r}"
        if self.forget is not None:
            raise ValueError(f"{name} starts at the starting model: set `forget: null`")
        if self.locate and (self.locate.include or self.locate.exclude):
            raise ValueError(f"{name} trains no located weights: remove locate.include and locate.exclude")
        if not improve.trained_by.samples:
            return
        if self.data.pairs is not None:
            raise ValueError(f"{name} samples by itself: give prompts in place of data.pairs")
        if self.sample.temperature == 0 or self.sample.num_generations < 2:
            raise ValueError(
                f"{name} compares the samples of a prompt: set sample.temperature above 0 and "
                "sample.num_generations to 2 or more"
            )
        if self.sample.stop:
            raise ValueError(f"{name} samples up to EOS: set sample.stop to []")

    @property
    def on_policy(self) -> dict[str, Any] | None:
        """Return what `improve` depends on besides its own block, if its trainer samples by itself; otherwise None."""
        if self.improve is None or not self.improve.trained_by.samples:
            return None
        keys = ("data_folder", "chat", "seed_of_data", "data")
        judged = {"judge": self.judge.settings, "sample": self.sample.decoding}
        return {key: getattr(self, key) for key in keys} | judged

    @property
    def measuring_reward_model(self) -> str | None:
        """Return the reward model for evaluation sets whose prompts have no answer."""
        return self.evaluate.reward_model or self.judge.reward_model

    @property
    def set_names(self) -> tuple[str, ...]:
        """Return the names of the evaluation sets whose prompts are answered, held-out prompts included."""
        held_out = (HELD_OUT,) if self.data.held_out and not self.data.is_ready else ()
        return (*self.evaluate.sets, *held_out)

    @property
    def seed_of_data(self) -> int:
        """Return the seed of every stage up to scoring."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def seed_of_order(self) -> int:
        """Return the seed of the order of prompts."""
        return self.seed_of_data

    @property
    def training_stages(self) -> tuple[str, ...]:
        """Return the recipe's training stages in order; the last one's model is the run's result."""
        return tuple(name for name in ("forget", "improve") if getattr(self, name))

    @property
    def max_density(self) -> float:
        """Return the largest share of the weights that a stage trains."""
        return max(stage.density for stage in (self.forget, self.improve) if stage)

    @property
    def reads_warmup(self) -> bool:
        """Return whether scoring needs the warm-up model's weights."""
        return self.forget is not None and self.score is not None and self.score.warmup_reader is not None

    @property
    def run_folder(self) -> Path:
        return self.out / self.name


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe.

    `overrides` are `dotted.key=value`, the value in YAML. Raises `UserError` for a missing file, bad YAML and each bad key.
    """
    return read_recipe(read_text(Path(path)), path=Path(path), overrides=overrides or [])


def read_recipe(
    text: str, *, path: Path, overrides: Sequence[str] = (), given: Collection[str] = ()
) -> Recipe:
    """Return the recipe of a text; errors name `path`, its file, or `--set` for keys of `overrides` and those `given`."""
    fields, root = parse(text, where=lambda line: f"{path}:{line}")
    if not isinstance(fields, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; found {type(fields).__name__}.")
    by_set = [*given, *(override(fields, each) for each in overrides)]
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError(
            "\n".join(explain(Recipe, path, root, problem, given=by_set) for problem in error.errors())
        ) from error


def save_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe, with every default, as YAML that `load_recipe` reads back equal."""
    return dump(json.loads(recipe.model_dump_json()))


def schema() -> dict[str, Any]:
    """Return the recipe's JSON schema, for editors."""
    return Recipe.model_json_schema()
