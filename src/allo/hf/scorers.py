"""Token scorers: how likely each token of a wrong completion is aligned (method.md section 4).

A scorer takes some completions and gives each token a number: a probability in [0, 1], low for a wrong
token, or, for those in `LOGRATIOS`, a log-ratio that is negative for one. To add one, write its function
and name it in `SCORERS`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from allo.core.places import Everything
from allo.core.token_credit import edit_scores, random_scores
from allo.errors import UserError
from allo.hf.collate import pad
from allo.hf.models import Model, Tokenizer
from allo.hf.policy import per_token_logps
from allo.hf.rewriter import Rewriter, rewriting
from allo.hf.tokenization import Tokenized, tokenize
from allo.records import Message, Wrong


@dataclass(frozen=True)
class Scored:
    """A wrong completion with the ids that get a score each."""

    wrong: Wrong
    tokens: Tokenized


@dataclass(frozen=True)
class Context:
    """What scorers may look at. `warmup`: tensors [shape] fp32 of the warm-up model, for `implicit`.

    `rewriter`: for the scorer of that name, whose model is then `model`, too.
    """

    model: Model
    tokenizer: Tokenizer
    max_length: int
    seed: int
    warmup: dict[str, Tensor] = field(default_factory=dict)
    rewriter: Rewriter | None = None


Scorer = Callable[[Sequence[Scored], Context], list[list[float]]]


def confidence(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """pi(y_t)."""
    return _probabilities([row.tokens for row in rows], context)


def privileged(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """pi(y_t) where the same model is shown the right solution."""
    # The solution stands first, where a long prompt is cut: it gets as much room again.
    room = 2 * context.max_length
    shown = [
        tokenize(
            context.tokenizer,
            _with_solution(row.wrong),
            row.wrong.completion,
            finished=row.wrong.finished,
            max_length=room,
        )
        for row in rows
    ]
    return _probabilities([tokens for tokens in shown if tokens is not None], context)


def rewriter(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """pi_rewriter(y_t): the rewriter, shown the right solution and y, writes y itself."""
    assert context.rewriter is not None
    own = context.rewriter
    return _probabilities([rewriting(own, row.wrong, row.tokens.completion_ids) for row in rows], context)


def implicit(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """log pi_warm-up - log pi_start: the warm-up run's own implicit reward, in fp32."""
    tokens = [row.tokens for row in rows]
    before = _logps(tokens, context)
    with _warmed_up(context):
        after = _logps(tokens, context)
    return [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]


def edit(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """0 where the diff to the nearest right sample (else the solution) changes the token, else 1."""
    end = [context.tokenizer.eos_token_id]
    scores = []
    for row in rows:
        texts = row.wrong.right or ([row.wrong.solution] if row.wrong.solution else [])
        rights = [[*context.tokenizer(text, add_special_tokens=False).input_ids, *end] for text in texts]
        scores.append(edit_scores(row.tokens.completion_ids, rights))
    return scores


def uniform(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """0 for every token: the control that marks all."""
    return [[0.0] * len(row.tokens.completion_ids) for row in rows]


def random(rows: Sequence[Scored], context: Context) -> list[list[float]]:
    """Uniform noise: the control that marks as many at random."""
    return [random_scores(row.wrong.id, len(row.tokens.completion_ids), seed=context.seed) for row in rows]


SCORERS: dict[str, Scorer] = {
    "implicit": implicit,
    "privileged": privileged,
    "rewriter": rewriter,
    "confidence": confidence,
    "edit": edit,
    "uniform": uniform,
    "random": random,
}
LOGRATIOS = frozenset({"implicit"})


@contextmanager
def _warmed_up(context: Context) -> Iterator[None]:
    """The model as the warm-up left it; its own bits come back after the block, also on an exception."""
    _exchange(context)
    try:
        yield
    finally:
        _exchange(context)


@torch.no_grad()
def _exchange(context: Context) -> None:
    """Exchange the model's weights with those of the warm-up."""
    for name, param in context.model.named_parameters():
        values = context.warmup[name].reshape(-1).to(param.device)
        context.warmup[name] = Everything().exchange(param.data, values)


@torch.inference_mode()
def _logps(tokens: Sequence[Tokenized], context: Context) -> list[list[float]]:
    rows = [(one.prompt_ids, one.completion_ids) for one in tokens]
    batch = pad(rows, pad_id=context.tokenizer.pad_token_id)
    batch = {key: value.to(context.model.device) for key, value in batch.items()}
    logps = per_token_logps(context.model, batch)
    return [row[: len(one.completion_ids)].tolist() for row, one in zip(logps, tokens, strict=True)]


def _probabilities(tokens: Sequence[Tokenized], context: Context) -> list[list[float]]:
    return [[math.exp(logp) for logp in row] for row in _logps(tokens, context)]


def _with_solution(wrong: Wrong) -> str | list[Message]:
    """The prompt with the right solution shown before it."""
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
    return [*before, Message(role=last["role"], content=shown + last["content"])]
