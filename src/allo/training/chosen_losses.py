"""A trainer's losses, given by name or as functions: looked up, and checked on a few rows."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allo.errors import UserError
from allo.losses.feedback_losses import AnswerSums
from allo.losses.forgetting_losses import TokenLogps, TokenLogratios
from allo.losses.needs import LossFunction, needs_of
from allo.losses.pair_losses import PairLogps, PairSums
from allo.recipe.losses import (
    FEEDBACK_LOSSES,
    FORGETTING_LOSSES,
    PAIR_LOSSES,
    FeedbackLoss,
    ForgettingLoss,
    PairLoss,
)
from allo.recipe.own_code import function_of, own_file

LossSettings = Mapping[str, float | bool]


def chosen_pair_loss(loss: str | LossFunction, settings: LossSettings, *, keep: float) -> LossFunction:
    """Return the loss of pairs of that name, or the function itself, tried on a few pairs.

    Raises `UserError` beginning with `loss`, `loss_settings` or `keep` for an unknown name, for settings that the loss
    does not take, and for a share of tokens to keep without log-ratios to keep them by. Also if the loss does not give
    each pair a finite loss with a gradient.
    """
    loss = _function(loss, PAIR_LOSSES)
    _check_settings(loss, settings)
    if keep < 1 and not needs_of(loss).reference:
        raise UserError(
            f"keep: {loss_name(loss)} has no reference, but tokens are kept by their log-ratios to it: set keep to 1.0."
        )
    for num_pairs in (2, 1, 3):
        _try_pairs(loss, settings, keep=keep, num_pairs=num_pairs)
    return loss


def chosen_feedback_loss(loss: str | LossFunction, settings: LossSettings, *, keep: float) -> LossFunction:
    """Return the loss of labelled completions of that name, or the function itself, tried on a few completions.

    Raises `UserError` as `chosen_pair_loss` does.
    """
    loss = _function(loss, FEEDBACK_LOSSES)
    _check_settings(loss, settings)
    for good in ([True, False], [True], [False], [False, True, False]):
        logps = torch.tensor([-3.0, -5.0, -4.0])[: len(good)].requires_grad_()
        logratios, lengths = torch.zeros_like(logps, requires_grad=True), torch.tensor([2, 4, 3])[: len(good)]
        answers = AnswerSums(torch.tensor(good), logps, lengths, logratios)
        with torch.enable_grad():
            found = feedback_losses_of(loss, answers, beta=0.1, kl=0.0, reward_mean=0.0, settings=settings)
        slopes = _slopes(loss, found, [logps, logratios], given="answers")
        if keep < 1 and slopes[1] is None:
            raise UserError(
                f"keep: {loss_name(loss)} reads no log-ratio, so `keep` would have no effect: set keep to 1.0."
            )
    return loss


def check_reference_point(loss: LossFunction, *, reference: str | None, rows_a_step: int) -> None:
    """Raise `UserError` if a loss of labelled completions could not have the `kl` that it needs."""
    if not needs_of(loss).kl:
        return
    if reference == "precomputed":
        raise UserError(
            f"reference: {loss_name(loss)} compares completions after the prompts of other rows, which differ in each "
            "step, so nothing can be precomputed: set it to swap."
        )
    if rows_a_step < 2:
        raise UserError(
            f"training.per_device_train_batch_size: {loss_name(loss)} takes its reference point from the other rows of a "
            "step, and a step has one row: raise it, or gradient_accumulation_steps."
        )


def chosen_forgetting_loss(loss: str | LossFunction) -> LossFunction:
    """Return the forgetting loss of that name, or the function itself, tried on a few completions.

    Raises `UserError` beginning with `loss` for an unknown name, and if the loss does not give each token (or
    completion) a finite loss with a gradient.
    """
    loss = _function(loss, FORGETTING_LOSSES)
    for num_rows in (2, 1, 3):
        logps = torch.tensor([[-0.5, -2.0, -1.0, -3.0]]).repeat(num_rows, 1).requires_grad_()
        logratios = torch.zeros_like(logps, requires_grad=True)
        weights = torch.tensor([[0.0, 1.0, 0.5, 0.0]]).repeat(num_rows, 1)
        alone = TokenLogps(logps, weights)
        given = TokenLogratios(logps, weights, logratios) if needs_of(loss).reference else alone
        with torch.enable_grad():
            found = forgetting_losses_of(loss, given, beta=0.1)
        _slopes(loss, found, [logps, logratios], given="tokens")
    return loss


def pair_losses_of(
    loss: LossFunction, pairs: PairLogps, *, beta: float, reward_mean: float, settings: LossSettings
) -> Tensor:
    """Return the loss of each pair, [B].

    Raises `UserError` naming the function if it raises or returns anything but one number per pair.
    """
    given = {"delta": reward_mean, **settings} if needs_of(loss).reward_mean else settings
    num_pairs = len(pairs.chosen_logps)
    count = {1: "one pair", 2: "two pairs"}.get(num_pairs, f"{num_pairs} pairs")
    return _losses(loss, pairs, (num_pairs,), f"one loss per pair, [B]: of {count}", {"beta": beta, **given})


def feedback_losses_of(
    loss: LossFunction,
    answers: AnswerSums,
    *,
    beta: float,
    kl: float,
    reward_mean: float,
    settings: LossSettings,
) -> Tensor:
    """Return the loss of each labelled completion, [B].

    Raises `UserError` naming the function if it raises or returns anything but one number per completion.
    """
    number = len(answers.logps)
    given = {"kl": kl} if needs_of(loss).kl else {}
    given |= {"delta": reward_mean} if needs_of(loss).reward_mean else {}
    promise = f"one loss per completion, [B]: of {number} completions"
    return _losses(loss, answers, (number,), promise, {"beta": beta, **given, **settings})


def forgetting_losses_of(loss: LossFunction, tokens: TokenLogps, *, beta: float) -> Tensor:
    """Return the loss of each token, [B, T], or of each completion, [B], if the loss says so.

    Raises `UserError` naming the function if it raises or returns anything else.
    """
    rows, length = tokens.logps.shape
    if needs_of(loss).completions:
        promise = f"one loss per completion, [B]: of {rows} completions"
        return _losses(loss, tokens, (rows,), promise, {"beta": beta})
    promise = f"one loss per token, [B, T]: of {rows} x {length} tokens"
    return _losses(loss, tokens, (rows, length), promise, {"beta": beta})


def loss_name(loss: LossFunction) -> str:
    """Return the loss's name, or `file.py:function` for a user's own."""
    name = getattr(loss, "__name__", repr(loss))
    code = getattr(inspect.unwrap(loss), "__code__", None)
    return name if _is_ours(loss) or code is None else f"{Path(code.co_filename).name}:{name}"


def loss_title(loss: LossFunction) -> str:
    """Return the loss's title for errors, with the name of a user's own."""
    return "loss" if _is_ours(loss) else f"loss {loss_name(loss)}"


def _is_ours(loss: LossFunction) -> bool:
    return getattr(loss, "__module__", "").startswith("allo.")


def _function(
    loss: str | LossFunction, table: Mapping[str, PairLoss | FeedbackLoss | ForgettingLoss]
) -> LossFunction:
    if isinstance(loss, str):
        if loss not in table and own_file(loss) is None:
            raise UserError(f"loss: {loss!r} is not one of {', '.join(table)}.")
        return function_of(table[loss].function if loss in table else loss, key="loss")
    if not callable(loss):
        raise UserError(f"loss: {loss!r} is neither a name nor a function.")
    return loss


def _losses(
    loss: LossFunction, given: Any, shape: tuple[int, ...], promise: str, keywords: Mapping[str, Any]
) -> Tensor:
    """Call a loss. Raises `UserError` if it raises or does not return numbers of this shape."""
    try:
        found = loss(given, **keywords)
    except UserError as error:
        raise UserError(f"loss_settings.{error}") from error
    except Exception as error:
        raise UserError(f"loss: {loss_name(loss)} fails: {type(error).__name__}: {error}") from error
    if not isinstance(found, Tensor) or found.shape != shape or not found.is_floating_point():
        kind = (
            f"a tensor of shape {list(found.shape)} and {found.dtype}"
            if isinstance(found, Tensor)
            else repr(found)
        )
        raise UserError(f"loss: {loss_name(loss)} must return {promise} it returned {kind}.")
    return found


def _check_settings(loss: LossFunction, settings: LossSettings) -> None:
    needs = needs_of(loss)
    given = {"beta"} | ({"delta"} if needs.reward_mean else set()) | ({"kl"} if needs.kl else set())
    try:
        parameters = list(inspect.signature(loss).parameters.values())
    except ValueError as error:
        raise UserError(f"loss: {loss_name(loss)} has no signature to read its settings from.") from error
    own = {
        each.name: each.default
        for each in parameters[1:]
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD) and each.name not in given
    }
    for name, value in settings.items():
        if name not in own:
            allowed = f"its settings are {', '.join(own)}" if own else "it has no settings: remove the key"
            raise UserError(f"loss_settings.{name}: {loss_name(loss)} takes no such setting; {allowed}.")
        is_flag = isinstance(own[name], bool)
        if isinstance(own[name], bool | int | float) and is_flag != isinstance(value, bool):
            wanted = "true or false" if is_flag else "a number"
            raise UserError(f"loss_settings.{name}: must be {wanted}; found {json.dumps(value)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"loss_settings.{name}: must be a finite number; found {value}.")
    missing = [name for name, default in own.items() if default is Parameter.empty and name not in settings]
    if missing:
        raise UserError(f"loss_settings.{missing[0]}: {loss_name(loss)} has no default for it: set it.")


def _try_pairs(loss: LossFunction, settings: LossSettings, *, keep: float, num_pairs: int) -> None:
    """Check a loss at the start of training, when all log-ratios are 0."""
    logps, lengths = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([2, 4, 3])
    zeros = torch.zeros(3)
    chosen, rejected, *logratios = (
        column[:num_pairs].clone().requires_grad_() for column in (logps, logps.flip(0), zeros, zeros)
    )
    alone = PairLogps(chosen, rejected, lengths[:num_pairs], lengths.flip(0)[:num_pairs])
    given = PairSums(*vars(alone).values(), *logratios) if needs_of(loss).reference else alone
    with torch.enable_grad():
        found = pair_losses_of(loss, given, beta=0.1, reward_mean=0.0, settings=settings)
    slopes = _slopes(loss, found, [chosen, rejected, *logratios], given="pairs")
    if keep < 1 and all(slope is None for slope in slopes[2:]):
        raise UserError(
            f"keep: {loss_name(loss)} reads no log-ratio, so `keep` would have no effect: set keep to 1.0, and mark "
            "the function with @pair_loss(needs_reference=False) to skip the reference's passes."
        )


def _slopes(
    loss: LossFunction, found: Tensor, inputs: Sequence[Tensor], *, given: str
) -> Sequence[Tensor | None]:
    """Return the slopes by each input. Raises `UserError` unless losses and slopes are finite, and there are any."""
    if not found.isfinite().all():
        raise UserError(
            f"loss: {loss_name(loss)} gives {found.tolist()} when policy and reference are equal, as at the first "
            "step: make it finite there."
        )
    slopes = torch.autograd.grad(found.sum(), inputs, allow_unused=True) if found.requires_grad else ()
    if all(slope is None for slope in slopes):
        raise UserError(
            f"loss: {loss_name(loss)} has no gradient: compute it from the tensors of `{given}`, without detach(), "
            "item() or numpy()."
        )
    if not all(slope.isfinite().all() for slope in slopes if slope is not None):
        raise UserError(
            f"loss: {loss_name(loss)} has a gradient that is not finite when policy and reference are equal, as at the "
            "first step."
        )
    return slopes
