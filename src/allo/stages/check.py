"""Find bad input before a run's first stage costs time."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from allo.artifacts import read_json
from allo.baselines.arguments import trl_arguments
from allo.console import say
from allo.endpoint import require_openai
from allo.errors import UserError
from allo.hf.arguments import training_arguments
from allo.hf.models import TOKENIZER_FILES, Tokenizer, load_tokenizer, locate_checkpoint
from allo.hf.rewriter import check_rewriter
from allo.hf.scorers import scorers_of
from allo.hf.templates import check_rendering
from allo.hf.vllm_engine import require_vllm
from allo.hf.written import check_written
from allo.prompts.gold import check_gold
from allo.recipe import Recipe, Steps
from allo.recipe.sources import Source
from allo.records import Pair, Prompt
from allo.rounds import data_of_rounds
from allo.sources import prompts_of, readings, training_pairs
from allo.stages import improve, locate
from allo.stages.judge import check_judgeable
from allo.stages.reward import check_reward_model, has_no_answers
from allo.stages.sample import check_servable, prompt_room


def check(recipe: Recipe) -> None:
    """Read every source of prompts, the tokenizers, the scorers and the model's positions; build all training arguments.

    Raises `UserError` for the first that is bad.
    """
    if recipe.improve and recipe.improve.trainer != "selected":
        trl_arguments(recipe, folder=recipe.run_folder, device=torch.device("cpu"))
    for key, training, lean in _training_blocks(recipe):
        training_arguments(
            training,
            folder=recipe.run_folder,
            seed=recipe.seed,
            device=torch.device("cpu"),
            key=key,
            lean=lean,
        )
    if recipe.locate is not None:
        locate.check_settings(recipe.locate)
    if recipe.score is not None:
        scorers_of(recipe.score)
    improve.check_settings(recipe)
    tokenizer = load_tokenizer(
        recipe.model, pad_token=recipe.pad_token, trust_remote_code=recipe.trust_remote_code
    )
    if recipe.score is not None and recipe.score.rewriter is not None:
        check_rewriter(recipe.score.rewriter, tokenizer, policy=recipe.model, max_length=recipe.max_length)
    _check_lengths(recipe)
    _check_backend(recipe)
    _check_judge(recipe, tokenizer)
    for source in [*(recipe.sft.sources if recipe.sft else []), *filter(None, [recipe.evaluate.kl])]:
        _check_templates(tokenizer, prompts_of(recipe, source))
    for key, reading in readings(recipe).items():
        for sentence in reading.sentences:
            say(f"{key}: {sentence}")


def _check_templates(tokenizer: Tokenizer, rows: Sequence[Prompt | Pair]) -> None:
    """Whether the chat template takes every row, and writes all that a row gives it."""
    check_rendering(tokenizer, rows)
    check_written(tokenizer, rows)


def _check_judge(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Whether everything that is judged can be, by its answer or by a reward model, and the chat template takes it."""
    samples: list[Prompt] = []
    pairs: list[Pair] = []
    if recipe.data.pairs is None:
        samples = [prompt for source in _data_of_rounds(recipe) for prompt in prompts_of(recipe, source)]
    else:
        pairs = training_pairs(recipe)
    sets = {name: prompts_of(recipe, source) for name, source in recipe.evaluate.sets.items()}
    judge = recipe.measuring_reward_model
    open_sets = [name for name, prompts in sets.items() if judge and has_no_answers(name, prompts)]
    by_reward = [prompt for name in open_sets for prompt in sets[name]]
    by_answer = [prompt for name in sets if name not in open_sets for prompt in sets[name]]
    _check_templates(tokenizer, [*samples, *pairs, *by_reward, *by_answer])
    if recipe.sample.backend == "openai":
        for prompt in samples:
            check_servable(prompt, api=recipe.sample.api)
    if recipe.judge.reward_model is None:
        by_answer = samples + by_answer
    for prompt in by_answer:
        check_judgeable(prompt, verifier=recipe.judge.verifier)
    check_gold(by_answer, verifier=recipe.judge.verifier)
    if recipe.judge.reward_model is not None:
        measured = by_reward if recipe.evaluate.reward_model is None else []
        check_reward_model(recipe, "judge.reward_model", recipe.judge.reward_model, samples + measured)
    if recipe.evaluate.reward_model is not None:
        check_reward_model(recipe, "evaluate.reward_model", recipe.evaluate.reward_model, by_reward)


def _data_of_rounds(recipe: Recipe) -> list[Source]:
    """The prompts of every round, once each. Raises `UserError` where a round finds none left."""
    (_, first), *later = data_of_rounds(recipe).items()
    for number, data in later:
        try:
            prompts_of(recipe, data)
        except UserError as error:
            raise UserError(
                f"round {number} of {recipe.rounds}: {error} Or set round_prompts to same, or fewer rounds."
            ) from error
    return [first, *(data for _, data in later)]


def _check_lengths(recipe: Recipe) -> None:
    """Whether prompts and completions fit the model's positions, where a config.json tells them."""
    folder, gguf = locate_checkpoint(recipe.model, TOKENIZER_FILES)
    config = folder / "config.json"
    if gguf is not None or not config.is_file():
        return
    positions = read_json(config).get("max_position_embeddings")
    lengths = [recipe.evaluate.max_new_tokens, recipe.evaluate.kl_tokens]
    if recipe.data.pairs is None:
        lengths.append(recipe.sample.max_new_tokens)
    prompt_room(positions, max_length=recipe.max_length, max_new_tokens=max(lengths))


def _check_backend(recipe: Recipe) -> None:
    """Whether what samples is installed. Servers are asked when their turn comes: the starting model comes first."""
    if recipe.data.pairs is not None:
        return
    if recipe.sample.backend == "vllm":
        require_vllm()
    if recipe.sample.backend == "openai":
        require_openai()


def _training_blocks(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The recipe's `training` blocks under their keys, and whether they are lean; but for TRL's."""
    for name in ("sft", "locate", "score", "forget", "improve"):
        block = getattr(recipe, name)
        if block is not None and getattr(block, "trainer", "selected") == "selected":
            yield f"{name}.training", block.training.model_dump(), isinstance(block, Steps) and block.lean
