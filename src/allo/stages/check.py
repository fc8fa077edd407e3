"""Checks that find bad input, and the rows a run will train on, before its first stage costs time."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.records import Prompt
from allo.files.rows import Reading
from allo.files.sizes import size
from allo.models import templates
from allo.models.device import is_slow_in_bf16
from allo.models.load import Tokenizer, empty_model
from allo.models.model_checks import check_positions, num_positions, prompt_room, rope_length
from allo.models.probe import cache_argument
from allo.models.start import allowed_in_start, check_policy, check_values, date_of, load_policy_tokenizer
from allo.recipe import Recipe
from allo.recipe.backends import BACKENDS
from allo.recipe.own_code import function_of
from allo.recipe.sources import HELD_OUT
from allo.sampling.at_servers import check_servable
from allo.stages.checked_rows import Asked, Trained, asked, trained_feedback, trained_ready, trained_solutions
from allo.stages.disk import Disk, check_disk
from allo.stages.judge import check_verifiable
from allo.stages.own_reward import sample_of
from allo.stages.reward import check_reward_model, measured_by
from allo.stages.settings import check_settings
from allo.tasks.gold import check_gold
from allo.tasks.own_rewards import try_functions
from allo.tasks.sources import Sources
from allo.tokens.rewriter import check_rewriter
from allo.weights.layout import trained_parameters


@dataclass(frozen=True)
class Findings:
    """All findings of a recipe's checks.

    `unread` says in words what can be checked only once models are loaded, and what is left as it is. `positions` is
    None for a model without a limit. `selects` says which weights may be selected, if not all. `held_out` says
    what is kept out of training, `tried` what reward functions returned for a few rows.
    """

    tokenizer: Tokenizer
    num_weights: int
    unread: list[str]
    positions: int | None
    readings: dict[str, Reading]
    trained: list[Trained]
    asked: list[Asked]
    disk: Disk
    selects: str
    held_out: list[str] = field(default_factory=list)
    tried: dict[str, list[str]] = field(default_factory=dict)


def check(recipe: Recipe, sources: Sources | None = None) -> None:
    """Make all checks, and report the fate of the rows. Raises `UserError` for the first failed check."""
    found = findings(recipe, sources)
    for key, sentences in found.tried.items():
        for sentence in sentences:
            say(f"{key}: {sentence}")
    for sentence in found.unread:
        say(sentence)
    if found.selects:
        say(f"locate: {found.selects}")
    for key, reading in found.readings.items():
        for sentence in reading.sentences:
            say(f"{key}: {sentence}")
    for sentence in found.held_out:
        say(f"data.{HELD_OUT}: {sentence}")
    for rows in found.trained:
        if rows.labels:
            say(f"{rows.key}: {rows.labels}")
        if words := rows.counts.words(recipe.max_length):
            say(f"{rows.key}: {words}")
    for prompts in found.asked:
        if prompts.cut:
            say(f"{prompts.key}: {prompts.cut} of {len(prompts.ids)} prompts lose their beginning")


def findings(recipe: Recipe, sources: Sources | None = None) -> Findings:
    """Make all checks that need no weights: arguments, functions, the model's files, all rows, the disk.

    Nothing is written. Raises `UserError` for the first failed check.
    """
    sources = sources or Sources(recipe)
    check_settings(recipe)
    tokenizer = load_policy_tokenizer(recipe, recipe.model)
    with contextlib.suppress(UserError, OSError, ValueError):
        templates.use_date(tokenizer, date_of(RunFolder(recipe.run_folder)) or templates.today())
    tried = _tried(recipe, sources, tokenizer)
    if recipe.score is not None and recipe.score.rewriter is not None:
        check_rewriter(recipe.score.rewriter, tokenizer, policy=recipe.model, max_length=recipe.max_length)
    config = check_policy(recipe, tokenizer)
    positions = num_positions(config)
    _check_lengths(recipe, positions)
    _check_trl_lengths(recipe, rope_length(config))
    model = empty_model(config, trust_remote_code=recipe.trust_remote_code)
    weights = sum(param.numel() for param in trained_parameters(model).values())
    of_all = sum(param.numel() for param in model.parameters())
    allowed = allowed_in_start(recipe)
    disk = check_disk(recipe, of_all)
    check_backend = BACKENDS[recipe.sample.backend].check
    if check_backend and not recipe.data.is_ready:
        function_of(check_backend, key="sample.backend")(recipe)
    prompts = _check_asked(recipe, sources, tokenizer, positions)
    if prompts:
        cache_argument(type(model))
    unread = [*map(check_values, _models(recipe)), _slow_dtype(recipe, of_all)]
    if weights < of_all:
        unread.append(
            f"{recipe.model}: {weights:,} of {of_all:,} weights are its text model's. The others, for images, video or "
            "sound, stay as they are, and no density counts them"
        )
    trained = trained_solutions(recipe, tokenizer, sources)
    if recipe.data.pairs is not None:
        trained.append(trained_ready(recipe, tokenizer, sources.pairs(), key="data.pairs"))
    elif recipe.data.feedback is not None:
        trained.append(trained_feedback(recipe, tokenizer, sources.feedback()))
    said = [sources.held_out(), *_held_out(recipe, tokenizer, sources)]
    return Findings(
        tokenizer,
        weights,
        list(filter(None, unread)),
        positions,
        sources.readings(),
        trained,
        prompts,
        disk,
        allowed.words(recipe.max_density) if allowed else "",
        list(filter(None, said)),
        tried,
    )


def _held_out(recipe: Recipe, tokenizer: Tokenizer, sources: Sources) -> Iterator[str]:
    """Yield in words the labels of held-out rows, and those that do not fit."""
    key = f"data.{HELD_OUT}"
    if recipe.data.pairs is not None and (pairs := sources.held_out_pairs()):
        yield trained_ready(recipe, tokenizer, pairs, key=key).counts.words(recipe.max_length)
    elif recipe.data.feedback is not None and (rows := sources.held_out_feedback()):
        found = trained_ready(recipe, tokenizer, rows, key=key)
        yield f"{sum(row.label for row in rows):,} of them are good, {sum(not row.label for row in rows):,} bad"
        yield found.counts.words(recipe.max_length)


def _slow_dtype(recipe: Recipe, num_weights: int) -> str:
    if recipe.dtype != "bfloat16" or not is_slow_in_bf16(recipe.device):
        return ""
    return (
        "dtype: this CPU is several times slower in bfloat16 than in float32, which takes "
        f"{size(2 * num_weights)} more memory for the model"
    )


def _models(recipe: Recipe) -> list[str | Path]:
    """Return the models that a recipe loads, each once."""
    found: list[str | Path | None] = [recipe.model, recipe.judge.reward_model, recipe.evaluate.reward_model]
    found.append(recipe.score.rewriter if recipe.score is not None else None)
    return [ref for ref in dict.fromkeys(found) if ref is not None]


def _check_asked(
    recipe: Recipe, sources: Sources, tokenizer: Tokenizer, positions: int | None
) -> list[Asked]:
    """Return the prompts to complete. Raises `UserError` for one that cannot be rendered, sent or judged."""
    found, evaluate = [], recipe.evaluate
    samples = [] if recipe.data.is_ready else list(sources.prompts(recipe.data))
    if samples:
        room = _room(recipe, positions, recipe.sample.max_new_tokens)
        by = "judged by " + (", ".join(recipe.judge.function) or recipe.judge.reward_model or "their answers")
        one, lengths = asked(tokenizer, samples, room, key="data", judged=by)
        found.append(one)
        if BACKENDS[recipe.sample.backend].asks_servers:
            for prompt, length in zip(samples, lengths, strict=True):
                check_servable(prompt, length, room, api=recipe.sample.api)
    sets = sources.sets()
    measured = {name: measured_by(recipe, name, prompts) for name, prompts in sets.items()}
    names = {
        "answers": "their answers",
        "function": ", ".join(recipe.judge.function),
        "reward model": str(recipe.measuring_reward_model),
    }
    if sets:
        room = _room(recipe, positions, evaluate.max_new_tokens)
    for name, prompts in sets.items():
        by = "judged by " + names[measured[name]]
        key = f"evaluate.sets.{name}" if name in evaluate.sets else f"data.{name}"
        found.append(asked(tokenizer, prompts, room, key=key, judged=by)[0])
    if evaluate.kl is not None:
        room = _room(recipe, positions, evaluate.kl_tokens)
        prompts = sources.prompts(evaluate.kl)
        by = "the distance to the starting model is measured there"
        found.append(asked(tokenizer, prompts, room, key="evaluate.kl", judged=by)[0])
    by_answer, by_reward = (
        [prompt for name in sets if measured[name] == by for prompt in sets[name]]
        for by in ("answers", "reward model")
    )
    _check_verifiers(recipe, samples, by_answer=by_answer, by_reward=by_reward)
    return found


def _tried(recipe: Recipe, sources: Sources, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Return what the user's reward functions returned for a few rows of each source that they judge."""
    sets = sources.sets()
    by_function = {
        (f"evaluate.sets.{name}" if name in recipe.evaluate.sets else f"data.{name}"): prompts
        for name, prompts in sets.items()
        if measured_by(recipe, name, prompts) == "function"
    }
    samples = {} if recipe.data.is_ready else {"data": sources.prompts(recipe.data)}
    return try_functions(
        recipe.judge,
        samples | by_function,
        lambda prompt, text: sample_of(prompt, text, None, tokenizer).token_ids,
    )


def _check_verifiers(
    recipe: Recipe, samples: list[Prompt], *, by_answer: list[Prompt], by_reward: list[Prompt]
) -> None:
    """Check that everything to be judged can be, by its answer or by a reward model."""
    if recipe.judge.reward_model is None and not recipe.judge.function:
        by_answer = samples + by_answer
    for prompt in by_answer:
        check_verifiable(prompt, verifier=recipe.judge.verifier)
    check_gold(by_answer, verifier=recipe.judge.verifier)
    if recipe.judge.reward_model is not None:
        measured = by_reward if recipe.evaluate.reward_model is None else []
        check_reward_model(recipe, "judge.reward_model", recipe.judge.reward_model, samples + measured)
    if recipe.evaluate.reward_model is not None:
        check_reward_model(recipe, "evaluate.reward_model", recipe.evaluate.reward_model, by_reward)


def _room(recipe: Recipe, positions: int | None, max_new_tokens: int) -> int:
    return prompt_room(positions, max_length=recipe.max_length, max_new_tokens=max_new_tokens)


def _check_lengths(recipe: Recipe, positions: int | None) -> None:
    """Check that prompts, completions and training rows fit the model's positions."""
    lengths = [recipe.evaluate.max_new_tokens] if recipe.set_names else []
    if recipe.evaluate.kl is not None:
        lengths.append(recipe.evaluate.kl_tokens)
    if not recipe.data.is_ready:
        lengths.append(recipe.sample.max_new_tokens)
    _room(recipe, positions, max(lengths, default=1))
    check_positions(positions, recipe.max_length, key="max_length", ref=recipe.model)


def _check_trl_lengths(recipe: Recipe, limit: int | None) -> None:
    """Refuse rows beyond `limit`, the model's `rope_length`, in a trainer that does not separate them from others."""
    trl = recipe.improve is not None and recipe.improve.trained_by.config
    if trl and limit is not None and recipe.max_length > limit:
        raise UserError(
            f"max_length is {recipe.max_length}, but TRL would batch rows on both sides of {limit} tokens, and in "
            f"{recipe.model} the longest row of a batch decides on the rotary angles of all: set max_length to {limit} or "
            "less, or take a trainer of allo's."
        )
