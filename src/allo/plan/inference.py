"""The memory of the stages that only run the model: sampling, scoring, evaluating."""

import torch
from torch import Tensor

from allo.models.collate import pad
from allo.models.load import Model
from allo.models.policy import completion_distributions, per_token_logps
from allo.models.rehearsal import rehearse_sampling, rehearsed_model
from allo.plan.lengths import Lengths, sampling_lengths, scoring_lengths, training_lengths
from allo.plan.memory import StagePlan
from allo.plan.rehearsal import Rehearsal
from allo.recipe import Recipe
from allo.recipe.evaluate import Evaluate
from allo.recipe.sample import Sample
from allo.stages.evaluate import KL_BATCH
from allo.stages.likelihood import ROWS
from allo.weights.layout import trained_parameters

_WORD = 2


def plan_sampling(recipe: Recipe) -> StagePlan:
    """Plan sampling: its first step with whole prompts, its last with all completions at full length."""
    with torch.inference_mode(), Rehearsal() as rehearsal:
        model = _load(recipe, rehearsal)
        lengths = _generate(recipe, recipe.sample, recipe.sample.num_generations, model, rehearsal)
    sample = recipe.sample  # all completions of a prompt are decoded together
    rows = max(1, sample.batch_size // sample.num_generations) * sample.num_generations
    load = f"{rows} completions of {lengths.prompt} + {lengths.completion} tokens"
    return StagePlan("sample", load, dict(rehearsal.at_peak), moments=rehearsal.moments)


def plan_scoring(recipe: Recipe) -> StagePlan:
    """Plan one batch of the longest completions, for the scorer that takes most.

    A scorer that asks other models has the model in fp32, and the others' weights in host memory.
    """
    assert recipe.score is not None
    lengths = scoring_lengths(recipe)
    size, scorers = recipe.score.batch_size, recipe.score.entries
    compared = max(len(scorer.weights) for scorer in scorers)
    with torch.inference_mode(), Rehearsal() as rehearsal:
        model = _load(recipe, rehearsal, dtype=torch.float32 if compared else None)
        if any(scorer.needs for scorer in scorers):
            per_token_logps(model, _batch(lengths, size))
    host = compared * sum(param.nbytes for param in trained_parameters(model).values())
    load = f"{size} rows of {lengths.prompt} + {lengths.completion} tokens"
    return StagePlan("score", load, dict(rehearsal.at_peak), host=host, moments=rehearsal.moments)


def plan_evaluation(recipe: Recipe) -> StagePlan:
    """Plan greedy answers (one row per prompt), samples, held-out rows, or KL to the start, whichever takes most."""
    evaluate, loads = recipe.evaluate, []
    numbers = {evaluate.generations(name) for name in recipe.set_names}
    numbers |= {1} if evaluate.greedy and numbers else set()
    with torch.inference_mode(), Rehearsal() as rehearsal:
        model = _load(recipe, rehearsal)
        for number in sorted(numbers - {0}):
            lengths = _generate(recipe, evaluate, number, model, rehearsal)
            loads = [f"{evaluate.batch_size} completions of {lengths.prompt} + {lengths.completion} tokens"]
        if recipe.data.held_out and recipe.data.is_ready:
            size = min(ROWS, evaluate.batch_size)
            pairs = max(1, size // 2)
            labelled = recipe.data.feedback is not None
            per_token_logps(model, _batch(training_lengths(recipe), size if labelled else 2 * pairs))
            of_pairs = f"{pairs} held-out pairs of {recipe.max_length} tokens a side"
            single = f"{size} held-out completions of {recipe.max_length} tokens with their prompts"
            loads.append(single if labelled else of_pairs)
        if evaluate.kl is not None:
            batch = _batch(
                sampling_lengths(recipe, model, evaluate.kl_tokens), min(KL_BATCH, evaluate.batch_size)
            )
            logps, start = (completion_distributions(model, batch) for _ in range(2))
            (logps.exp() * (logps - start)).sum(-1)
            loads = loads or [f"{min(KL_BATCH, evaluate.batch_size)} rows for KL"]
    load = " and ".join(loads) or "no rows"
    return StagePlan("evaluate", load, dict(rehearsal.at_peak), moments=rehearsal.moments)


def _load(recipe: Recipe, rehearsal: Rehearsal, *, dtype: torch.dtype | None = None) -> Model:
    """Return the model alone; its vocabulary size identifies logits."""
    model = rehearsed_model(recipe, dtype=dtype)
    rehearsal.hold([*model.parameters(), *model.buffers()], "weights")
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rehearsal.kind = lambda tensor: "log-probs" if tensor.shape[-1:] == (vocabulary,) else "activations"
    rehearsal.start_again()
    return model


def _generate(
    recipe: Recipe, settings: Sample | Evaluate, num_generations: int, model: Model, rehearsal: Rehearsal
) -> Lengths:
    """Rehearse the prompts as a whole, and the last step of their completions."""
    lengths = sampling_lengths(recipe, model, settings.max_new_tokens)
    before = rehearsal.peak
    logits, cache = rehearse_sampling(
        model,
        prompts=max(1, settings.batch_size // num_generations),
        length=lengths.prompt,
        num_generations=num_generations,
        max_new_tokens=settings.max_new_tokens,
    )
    kept = sum(states.nbytes for states in cache)
    # Probabilities are in fp32 and fully sorted, as on a GPU.
    logits.float().softmax(-1).topk(logits.shape[1]).values.cumsum(-1)
    if rehearsal.peak > before:
        rehearsal.at_peak["activations"] -= kept
        rehearsal.at_peak["cache"] += kept
    return lengths


def _batch(lengths: Lengths, size: int) -> dict[str, Tensor]:
    """Return rows of which one is shorter: with padding, attention takes a mask."""
    prompt, completion = [_WORD] * lengths.prompt, [_WORD] * lengths.completion
    return pad([(prompt, completion)] * (size - 1) + [(prompt[size > 1 :], completion)], pad_id=0)
