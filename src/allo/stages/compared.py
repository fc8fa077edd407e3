"""Improving by a method to compare with: adapters and on-policy trainers of other libraries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from allo.baselines.arguments import trl_arguments, without_known_warnings
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Completion, Pair, Prompt
from allo.models.load import Model
from allo.models.model_checks import num_positions, prompt_room
from allo.models.start import DTYPES, load_start
from allo.models.thoughts import thoughts_of
from allo.models.tokenization import cut_left
from allo.recipe import Recipe
from allo.recipe.own_code import function_of
from allo.recipe.own_process import STATE
from allo.sampling.completions import ids_of, turn_ends
from allo.stages.judge import verify
from allo.stages.reward import load_reader
from allo.tasks.own_rewards import Reward, Sample, own_rewards
from allo.tasks.sources import training_prompts
from allo.training.result import write_change
from allo.training.run import moment_bytes, train_from
from allo.weights.layout import Layout

OwnJudge = Callable[[Sequence[Completion], Mapping[str, Any]], list[Reward]]


@without_known_warnings()
def train_adapter(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `07-improve`: DPO from the starting model with an adapter, merged at the end."""
    improve = recipe.improve
    assert improve is not None
    model, tokenizer = load_start(recipe, folder)
    args = trl_arguments(recipe, folder=folder.improve, device=model.device)
    from allo.baselines.adapters import AdapterTrainer, adapter_rank

    num_weights = Layout.of(model).full_mask().num_weights
    rank = improve.adapter_rank or adapter_rank(model, density=improve.density)
    trainer = AdapterTrainer(
        model,
        args,
        [vars(pair) for pair in read_jsonl(folder.pairs, Pair)],
        tokenizer,
        function_of(improve.trained_by.parts, key="improve.trainer")(rank=rank, seed=recipe.seed),
    )
    counts = {"rows": len(trainer.train_dataset), "dropped": trainer.num_dropped, "adapter_rank": rank}
    counts |= _train(trainer, folder, num_weights=num_weights)
    counts["training_state_bytes"] += trainer.adapter_bytes
    return counts | _write(trainer.model.merge_and_unload(), recipe, folder)


@without_known_warnings()
def train_on_policy(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `07-improve`: all weights of the starting model, trained by the rewards of its own samples.

    They are trained in fp32, and rounded to the run's dtype at the end. A reward model stays in memory beside them.
    """
    assert recipe.improve is not None
    model, tokenizer = load_start(recipe, folder, dtype=torch.float32)
    args = trl_arguments(recipe, folder=folder.improve, device=model.device)
    from allo.baselines.on_policy import on_policy_trainer

    prompts = {prompt.id: prompt for prompt in training_prompts(recipe)}
    room = prompt_room(
        num_positions(model.config), max_length=recipe.max_length, max_new_tokens=recipe.sample.max_new_tokens
    )
    whole = {prompt.id: ids_of(tokenizer, prompt) for prompt in prompts.values()}

    reader = load_reader(recipe, recipe.judge.reward_model, folder) if recipe.judge.reward_model else None
    samples_cut = 0
    thoughts = thoughts_of(tokenizer, prompts.values())

    def rewards(completions: Sequence[Completion]) -> list[float]:
        nonlocal samples_cut
        asked = [(prompts[one.prompt_id], one) for one in completions]
        if reader is not None:
            found, cut = reader.rewards([(prompt, one.text) for prompt, one in asked])
            samples_cut += cut
            return found
        return [
            verify(prompt, one, verifier=recipe.judge.verifier, thoughts=thoughts).reward
            for prompt, one in asked
        ]

    with _own_judges(recipe, prompts) as own:
        trainer = on_policy_trainer(
            function_of(recipe.improve.trained_by.parts, key="improve.trainer"),
            model,
            args,
            {name: cut_left(tokenizer, ids, room) for name, ids in whole.items()},
            tokenizer,
            turn_ends=turn_ends(tokenizer, list(prompts.values())),
            rewards=own or rewards,
        )
        num_weights = Layout.of(model).full_mask().num_weights
        num_cut = sum(len(ids) > room for ids in whole.values())
        counts = {"rows": len(prompts), "prompts_cut": num_cut, "dropped": 0}
        counts |= _train(trainer, folder, num_weights=num_weights)
    if reader is not None:
        counts["samples_cut"] = samples_cut
    # Besides gradients and moments: the reference, the reward model, and what fp32 takes beyond the run's dtype.
    reference = num_weights * model.dtype.itemsize if trainer.ref_model is not None else 0
    more = num_weights * (model.dtype.itemsize - DTYPES[recipe.dtype].itemsize)
    reward_bytes = sum(param.nbytes for param in reader.model.model.parameters()) if reader else 0
    counts["training_state_bytes"] += reference + reward_bytes + more
    return counts | _write(model.to(DTYPES[recipe.dtype]), recipe, folder)


@contextmanager
def _own_judges(recipe: Recipe, prompts: Mapping[str, Prompt]) -> Iterator[dict[str, OwnJudge]]:
    """Yield the functions of `judge.function` by name, as `on_policy_trainer` takes them."""
    if not recipe.judge.function:
        yield {}
        return
    with own_rewards(recipe.judge, prompts.values()) as own:

        def judge(number: int, completions: Sequence[Completion], passed: Mapping[str, Any]) -> list[Reward]:
            samples = [Sample(prompts[one.prompt_id], one.text, one.token_ids or []) for one in completions]
            state = {name: getattr(passed["trainer_state"], name) for name in STATE}
            reply = own.by(number, samples, state)
            for log in ("log_metric", "log_extra"):
                for name, value in reply[log]:
                    passed[log](name, value)
            rewards: list[Reward] = reply["rewards"]
            return rewards

        names = [name.rpartition(":")[2] for name in recipe.judge.function]
        unique = names if len(set(names)) == len(names) else [f"{one}_{n}" for n, one in enumerate(names)]
        yield {name: partial(judge, number) for number, name in enumerate(unique)}


def _train(trainer: Any, folder: RunFolder, *, num_weights: int) -> dict[str, Any]:
    """Train to the end, write `metrics.jsonl`, and return the counts."""
    write_jsonl(folder.improve / "metrics.jsonl", train_from(trainer, None))
    trained = [param for param in trainer.model.parameters() if param.requires_grad]
    num_trained = sum(param.numel() for param in trained)
    return {
        "steps": trainer.state.global_step,
        "trained_weights": num_trained,
        "density": num_trained / num_weights,
        "training_state_bytes": moment_bytes(trainer) + sum(param.nbytes for param in trained),
    }


def _write(model: Model, recipe: Recipe, folder: RunFolder) -> dict[str, int]:
    """Write the change of all weights, and the whole model."""
    assert recipe.improve is not None
    metadata = {"trainer": recipe.improve.trainer, "seed": str(recipe.seed)}
    return write_change(model, folder, folder.improve, among=Layout.of(model).shapes, metadata=metadata)
