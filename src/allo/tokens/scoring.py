"""Scores of the tokens of wrong completions, for the stage `score` and in memory."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from allo.console import say
from allo.errors import UserError
from allo.files.records import TokenScores, Wrong
from allo.models.policy import check_head, shares_prefix
from allo.models.tokenization import tokenize
from allo.models.tokenizer_checks import require_pad_token
from allo.recipe.own_code import function_of
from allo.recipe.scores import SCORERS, WeightRule, scorer_entry
from allo.tasks.pairs import completions_of_rows
from allo.tokens.scorers import Context, Scored, ScoringFunction, checked_scorer
from allo.tokens.token_credit import completion_weights, from_logratios
from allo.training.given import given_tokenizer, named_model

_SHOWN = ("right", "solution")


def score(
    model: PreTrainedModel | str | Path,
    rows: Iterable[Mapping[str, Any]],
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    scorer: str | ScoringFunction,
    weights: WeightRule = "indicator",
    threshold: float = 0.5,
    marked: Literal["all", "first"] = "all",
    max_length: int = 1200,
    batch_size: int = 16,
    seed: int = 0,
) -> list[TokenScores]:
    """Return scores and weights of each wrong completion's tokens, one record a row, in the rows' order (method.md 1.2).

    A record has `token_ids`, `scores` and `weights`, one entry a token, the end included where the completion finished.
    A row of `ForgetTrainer` takes them as `completion_ids` and `token_weights`. The model is only read.

    Args:
        model: a model, or its folder or hub id.
        processing_class: the tokenizer, by default the model's own.
        rows: `prompt` and the wrong `completion`, as of `ForgetTrainer`; for scorers that look at them, the right answers'
            texts `right`, a list, and one text `solution`.
        scorer: "confidence", "entropy", "privileged", "edit", "uniform", "random", or a function
            `allo.tokens.ScoringFunction`. The recipe's other scorers ask what only a run has: other models, or all samples of
            a prompt.
        weights, threshold, marked: how scores become weights, as in the recipe's block `score`.
        max_length: tokens of a row. Longer prompts lose their beginning.
        seed: of the scorer "random".

    Raises:
        UserError: an unknown scorer, a row that is no completion or leaves no room for a prompt token, or scores that are not
            one number from 0 to 1 a token.
    """
    function = _function(scorer)
    model = named_model(model)
    processing_class = given_tokenizer(processing_class, model)
    require_pad_token(processing_class)
    scored = _read(rows, processing_class, max_length=max_length)
    check_head(model)
    context = Context(model, processing_class, max_length, seed, shared_prefix=shares_prefix(model))
    was_training = model.training
    model.eval()
    try:
        batches = [scored[start : start + batch_size] for start in range(0, len(scored), batch_size)]
        found = [one for batch in batches for one in function(batch, context)]
    finally:
        model.train(was_training)
    return token_scores(scored, _joined(found), rule=weights, threshold=threshold, marked=marked)


def token_scores(
    rows: Sequence[Scored],
    scores: Tensor,
    *,
    rule: WeightRule,
    threshold: float,
    marked: str,
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[TokenScores]:
    """Return each completion's scores, and the weights that follow from them.

    `scores` [tokens] fp32 has the completions one after the other, and so have other scorers' in `beside`, by name.
    """
    lengths = [len(row.tokens.completion_ids) for row in rows]
    weights = completion_weights(scores, lengths, rule=rule, threshold=threshold, marked=marked)
    others = {name: numbers.split(lengths) for name, numbers in beside.items()}
    return [
        TokenScores(
            row.wrong.id,
            row.tokens.completion_ids,
            own.tolist(),
            kept.tolist(),
            {name: split[place].tolist() for name, split in others.items()},
        )
        for place, (row, own, kept) in enumerate(zip(rows, scores.split(lengths), weights, strict=True))
    ]


def probabilities(scorer: str, scores: Sequence[Sequence[float]]) -> Tensor:
    """Return a scorer's numbers for all completions, joined, as probabilities: [tokens] fp32."""
    flat = _joined(scores)
    if not scorer_entry(scorer).logratios:
        return flat
    scale = flat.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny).item()
    return from_logratios(flat, scale=scale)


def _joined(scores: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([number for one in scores for number in one], dtype=torch.float32)


def _function(scorer: str | ScoringFunction) -> ScoringFunction:
    """Return the scorer of a name, or a function with its scores checked."""
    if callable(scorer):
        name = getattr(scorer, "__name__", repr(scorer))
        return checked_scorer(scorer, name, key="scorer")
    alone = [one.name for one in SCORERS.values() if not one.needs_run]
    if scorer in alone:
        loaded: ScoringFunction = function_of(SCORERS[scorer].function, key="scorer")
        return loaded
    why = "needs data that only a run has: use it in a recipe" if scorer in SCORERS else "is no scorer"
    raise UserError(f"scorer: {scorer!r} {why}; here, give one of {', '.join(alone)}, or a function.")


def _read(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[Scored]:
    """Return each row with its token ids. Raises `UserError` for a row without any, and for one that does not fit."""
    given = [dict(row) for row in rows]
    shown = [{name: row.pop(name, None) for name in _SHOWN} for row in given]
    read, reading = completions_of_rows(given)
    for sentence in reading.sentences:
        say(f"score: rows: {sentence}")
    scored = []
    for number, (one, beside) in enumerate(zip(read, shown, strict=True)):
        right, solution = beside["right"] or [], beside["solution"]
        if not isinstance(right, list) or not all(isinstance(text, str) for text in right):
            raise UserError(f"rows, row {number}: `right` must be a list of texts, one per right answer.")
        if solution is not None and not isinstance(solution, str):
            raise UserError(f"rows, row {number}: `solution` must be one text.")
        wrong = Wrong(
            id=one["id"],
            prompt_id=one["id"],
            prompt=one["prompt"],
            completion=one["completion"],
            finished=one["finished"],
            solution=solution,
            right=right,
            token_ids=one["completion_ids"],
            template=one["template"],
            message=one["message"],
        )
        row = tokenized(wrong, tokenizer, max_length=max_length, place=f"rows, row {number}")
        if row is None:
            raise UserError(
                f"rows, row {number}: the completion has no token, or leaves no room for its prompt in max_length "
                f"{max_length}: leave the row out, or raise max_length."
            )
        scored.append(row)
    return scored


def tokenized(
    wrong: Wrong, tokenizer: PreTrainedTokenizerBase, *, max_length: int, place: str
) -> Scored | None:
    """Return a completion with its token ids; None if it has none, or leaves no room for a prompt token."""
    tokens = tokenize(
        tokenizer,
        wrong.prompt,
        wrong.message or wrong.completion,
        finished=wrong.finished,
        completion_ids=wrong.token_ids,
        max_length=max_length,
        template=wrong.template,
        place=place,
    )
    return None if tokens is None else Scored(wrong, tokens)
