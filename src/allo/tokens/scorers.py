"""Token scorers: functions that say how likely each token of a wrong completion is aligned (method.md section 4).

A scorer takes some completions and gives each token a number. It is a probability in [0, 1], low for a wrong token. If
the scorer's entry says `logratios`, it is a log-ratio, negative for a wrong token. The table is `allo.recipe.scores.SCORERS`;
docs/extending.md shows how to add a scorer.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from allo.errors import UserError
from allo.files.records import Message, Wrong
from allo.models.collate import Batch, lay_out_together
from allo.models.load import Model, Tokenizer
from allo.models.policy import per_token_logps, token_entropies
from allo.models.tokenization import Tokenized, tokenize
from allo.recipe.own_code import function_of, load_function, own_file
from allo.recipe.scores import Score
from allo.tokens.rewriter import Rewriter, rewriting
from allo.tokens.token_credit import advantages, edit_scores, random_scores
from allo.weights.places import Everything, Patch


@dataclass(frozen=True)
class Scored:
    """A wrong completion, and its tokens; each completion token gets a score."""

    wrong: Wrong
    tokens: Tokenized


@dataclass(frozen=True)
class GradedSample:
    """A judged completion of a prompt. `token_ids`: the ids that were sampled, if they are known."""

    text: str
    finished: bool
    right: bool
    token_ids: list[int] | None = None
    message: Message | None = None


@dataclass(frozen=True)
class Context:
    """All that scorers may look at.

    `model`: the starting model. `samples`: all judged completions by prompt id. `weights`: the other models that the
    scorer's entry needs, each as tensors [shape] fp32 by name. `rewriter`: the rewriter, if the entry needs it; `model` is
    then the rewriter's. `shared_prefix`: whether the model reads several completions of a prompt in one row.
    """

    model: Model
    tokenizer: Tokenizer
    max_length: int
    seed: int
    samples: Mapping[str, Sequence[GradedSample]] = field(default_factory=dict)
    weights: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    rewriter: Rewriter | None = None
    shared_prefix: bool = False


ScoringFunction = Callable[[Sequence[Scored], Context], list[list[float]]]


def confidence(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return pi(y_t)."""
    return _probabilities([row.tokens for row in rows], context)


def entropy(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return exp(-H_t), with H_t the entropy of pi(. | x, y_<t): low at tokens where the model may go on in many ways.

    Tokens of high entropy are those that reinforcement learning changes (arXiv 2506.01939). The score is one over the
    number of equally likely tokens of this entropy, so the default threshold .27 marks a choice among some four or more.
    """
    found = _read([row.tokens for row in rows], context, token_entropies)
    return [[math.exp(-nats) for nats in row] for row in found]


def privileged(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return pi(y_t) of the same model if it is shown the right solution."""
    # A long prompt is cut at its beginning, where the solution stands, so the room is doubled.
    room = 2 * context.max_length
    shown = [
        tokenize(
            context.tokenizer,
            _with_solution(row.wrong),
            row.wrong.completion,
            completion_ids=row.tokens.completion_ids,
            max_length=room,
            template=row.wrong.template,
        )
        for row in rows
    ]
    return _probabilities([tokens for tokens in shown if tokens is not None], context)


def rewriter(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return pi_rewriter(y_t): the probability that the rewriter, shown the right solution and y, writes y again."""
    assert context.rewriter is not None
    own = context.rewriter
    return _probabilities([rewriting(own, row.wrong, row.tokens.completion_ids) for row in rows], context)


def implicit(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return log pi_warm-up - log pi_start, the implicit reward of the warm-up, in fp32."""
    tokens = [row.tokens for row in rows]
    before = _logps(tokens, context)
    with _under(context, "warmup"):
        after = _logps(tokens, context)
    return _differences(after, before)


def contrastive(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return log pi_plus - log pi_minus, in fp32: the start fine-tuned on right and on wrong samples (cDPO, TIS-DPO)."""
    tokens = [row.tokens for row in rows]
    with _under(context, "chosen"):
        plus = _logps(tokens, context)
    with _under(context, "rejected"):
        minus = _logps(tokens, context)
    return _differences(plus, minus)


def right_confidence(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return pi_plus(y_t), in fp32: the token's probability under the start fine-tuned on right samples."""
    with _under(context, "chosen"):
        return _probabilities([row.tokens for row in rows], context)


def advantage(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Compare the share of right samples among those that begin alike after the token with that before it."""
    scores = []
    for row in rows:
        samples = context.samples.get(row.wrong.prompt_id, ())
        judged = [(_ids(one, row.wrong, context), one.right) for one in samples]
        scores.append(advantages(row.tokens.completion_ids, judged))
    return scores


def edit(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return 0 if the diff to the nearest right sample, or else to the solution, changes the token, and 1 otherwise."""
    scores = []
    for row in rows:
        texts = row.wrong.right or ([row.wrong.solution] if row.wrong.solution else [])
        samples = context.samples.get(row.wrong.prompt_id, ())
        known = {one.text: one for one in reversed(samples) if one.right}
        shown = [known.get(text, GradedSample(text, finished=True, right=True)) for text in texts]
        rights = [_ids(one, row.wrong, context) for one in shown]
        scores.append(edit_scores(row.tokens.completion_ids, rights))
    return scores


def uniform(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return 0 for every token, a control that marks all."""
    return [[0.0] * len(row.tokens.completion_ids) for row in rows]


def random(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Return uniform noise, a control that marks tokens at random."""
    return [random_scores(row.wrong.id, len(row.tokens.completion_ids), seed=context.seed) for row in rows]


def scorers_of(score: Score) -> dict[str, ScoringFunction]:
    """Return the recipe's scorers by name, first the one whose weights count.

    Raises `UserError` if a function of the user's own cannot be loaded; its scores are checked when it runs.
    """
    keys = dict.fromkeys(score.beside, "score.beside") | {score.scorer: "score.scorer"}
    return {
        one.name: checked_scorer(load_function(one.name, key=keys[one.name]), one.name, key=keys[one.name])
        if own_file(one.name)
        else function_of(one.function, key=keys[one.name])
        for one in score.entries
    }


def checked_scorer(function: ScoringFunction, name: str, *, key: str) -> ScoringFunction:
    """Return the user's own function, with each of its scores checked."""

    def scorer(rows: Sequence[Scored], context: Context) -> list[list[float]]:
        returned = function(rows, context)
        try:
            scores = [[float(number) for number in one] for one in returned]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{key}: {name} returned {type(returned).__name__}, not a list of numbers for each row ({error}): "
                "return [[score, ...], ...]."
            ) from error
        if len(scores) != len(rows):
            raise UserError(
                f"{key}: {name} gave scores of {len(scores)} completions for {len(rows)}: return one list each."
            )
        for row, one in zip(rows, scores, strict=True):
            length = len(row.tokens.completion_ids)
            if len(one) != length:
                raise UserError(
                    f"{key}: {name} gave {len(one)} scores for the {length} tokens of completion {row.wrong.id}: "
                    "return one for each of row.tokens.completion_ids."
                )
            bad = next((number for number in one if not 0 <= number <= 1), None)  # nan is none of these
            if bad is not None:
                raise UserError(
                    f"{key}: {name} gave the score {bad} in completion {row.wrong.id}: return probabilities from "
                    "0 (wrong) to 1 (aligned)."
                )
        return scores

    return scorer


def _under(context: Context, name: str) -> AbstractContextManager[None]:
    """Return a block in which the model has other weights; its own come back after it, also on an exception.

    A warm-up that may not train every tensor has no others.
    """
    weights = context.weights[name]
    parameters = {key: param for key, param in context.model.named_parameters() if key in weights}
    return Patch(parameters, dict.fromkeys(parameters, Everything()), weights).exchanged()


def _differences(after: list[list[float]], before: list[list[float]]) -> list[list[float]]:
    return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(after, before, strict=True)]


def _ids(sample: GradedSample, beside: Wrong, context: Context) -> list[int]:
    """Return a completion's ids: those that were sampled, otherwise the text's after the prompt of `beside`."""
    if sample.token_ids is not None:
        return sample.token_ids
    tokens = tokenize(
        context.tokenizer,
        beside.prompt,
        sample.message or sample.text,
        finished=sample.finished,
        max_length=sys.maxsize,
        template=beside.template,
    )
    return [] if tokens is None else tokens.completion_ids


def _logps(tokens: Sequence[Tokenized], context: Context) -> list[list[float]]:
    return _read(tokens, context, per_token_logps)


@torch.inference_mode()
def _read(
    tokens: Sequence[Tokenized], context: Context, numbers: Callable[[Model, Batch], Tensor]
) -> list[list[float]]:
    """Return `numbers` of each completion token, as the model reads it after its prompt."""
    rows = [(one.prompt_ids, one.completion_ids) for one in tokens]
    pad_id = context.tokenizer.pad_token_id
    batch = lay_out_together(rows, pad_id=pad_id, shared=context.shared_prefix)
    batch = {key: value.to(context.model.device) for key, value in batch.items()}
    found = numbers(context.model, batch)
    return [row[: len(one.completion_ids)].tolist() for row, one in zip(found, tokens, strict=True)]


def _probabilities(tokens: Sequence[Tokenized], context: Context) -> list[list[float]]:
    return [[math.exp(logp) for logp in row] for row in _logps(tokens, context)]


def _with_solution(wrong: Wrong) -> str | list[Message]:
    """Return the prompt with the right solution shown before it."""
    solution = wrong.solution or next(iter(wrong.right), None)
    if solution is None:
        raise UserError(
            f"prompt {wrong.prompt_id}: scorer `privileged` shows the right solution, but the prompt has no "
            "`solution` and no right sample. Choose another score.scorer."
        )
    shown = f"A correct solution to the problem below, to check your own against:\n{solution}\n\n"
    if isinstance(wrong.prompt, str):
        return shown + wrong.prompt
    *before, last = wrong.prompt
    shown_last: Message = {**last, "content": shown + last["content"]}
    return [*before, shown_last]
