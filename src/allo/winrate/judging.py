"""A judge asked about every pair of answers in both orders, with all results in one record."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allo import __version__
from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import read_json, sha256_json, write_json
from allo.sampling.endpoint import Endpoint
from allo.sampling.questions import Answers, Question, ask
from allo.stats.length_control import length_controlled
from allo.stats.win_rate import LOSS, TIE, WIN, agreement, bounds, outcomes, position_bias, win_rate
from allo.winrate.outputs import Duel, Outputs, duels
from allo.winrate.wording import CUT_SHORT, STOPPED, WORDING, ask_for_verdict, read_verdict

SCHEMA = 1
SEED = 0
"""Seed of the intervals' random draws."""
ORDERS = ("model_first", "baseline_first")
_SCORES = {"model": WIN, "tie": TIE, "baseline": LOSS}
_JUDGE = ("base_url", "model", "max_tokens", "temperature", "wording")  # others may judge differently
_NOT_ANSWERED = "not answered"
_OF_REPLY = ("reply", "ended", "prompt_tokens", "completion_tokens")  # the record's fields from one reply
_NAMED = 3  # failures described in words; all are counted


@dataclass(frozen=True)
class JudgeSettings:
    """The request's settings; `temperature` None leaves the choice to the server."""

    max_tokens: int
    temperature: float | None


def judge(
    model: Outputs, baseline: Outputs, endpoint: Endpoint, settings: JudgeSettings, *, folder: Path
) -> dict[str, Any]:
    """Write `judged-....json` into the folder, and return its content.

    Replies are stored beside it as they arrive, so the same call again asks only unanswered questions. Raises
    `UserError` as `duels` and `ask` do, and if no question was answered at all.
    """
    path = _place(model, baseline, endpoint, settings, folder=folder)
    pairs, num_alone = duels(model, baseline)
    asked = [duel for duel in pairs if not _identical(duel)]
    questions = [question for duel in asked for question in _questions(duel)]
    answers = ask(
        endpoint, questions, path=path, max_tokens=settings.max_tokens, temperature=settings.temperature
    )
    if questions and not answers.replies:
        raise UserError(
            f"{endpoint.base_url}, model {endpoint.model!r}: none of {len(questions)} questions was answered; the "
            f"first failed with: {next(iter(answers.failed.values()))}."
        )
    for id, reason in list(answers.failed.items())[:_NAMED]:
        say(f"{id}: {_NOT_ANSWERED}: {reason}")
    verdicts = [_verdict(duel, answers) for duel in pairs]
    counts = answers.counts(endpoint)
    del counts["asked"]  # it counts this call only, and interruptions must not change the record
    record = {
        "schema": SCHEMA,
        "allo": __version__,
        "set": model.set,
        "model": _side(model),
        "baseline": _side(baseline),
        "judge": _asked_of(endpoint, settings),
        "seed": SEED,
        "summary": summary(verdicts),
        "counts": {"prompts": len(pairs), "without_counterpart": num_alone, **counts, **_counted(verdicts)},
        "verdicts": verdicts,
    }
    write_json(path, record)
    say(f"{path}: {answers.asked} questions asked, {len(answers.replies)} replies")
    return record


def summary(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of prompts whose verdicts were read in both orders, and bounds for all prompts.

    Identical answers count as ties in the win rate, and not in figures about the judge.
    """
    known = [row for row in verdicts if row["score"] is not None]
    if not known:
        return {"num_prompts": 0, "win_rate": None, "length_controlled": None}
    scores = np.array([_scores(row) for row in known])
    said = np.array([not row["identical"] for row in known])
    lengths = np.array([row["characters"] for row in known], dtype=float)
    differences = lengths[:, 0] - lengths[:, 1]
    controlled = length_controlled(scores.mean(1), differences, seed=SEED)
    lost, won = bounds(scores, num_unknown=len(verdicts) - len(known))
    return {
        "num_prompts": len(known),
        "win_rate": win_rate(scores, seed=SEED).figure,
        "win_rate_if_unread_lost": lost,
        "win_rate_if_unread_won": won,
        **asdict(outcomes(scores)),
        "length_controlled": controlled and controlled.win_rate.figure | {"length_effect": controlled.effect},
        "mean_characters": {"model": lengths[:, 0].mean(), "baseline": lengths[:, 1].mean()},
        "longer": float((differences > 0).mean()),
        "position_bias": position_bias(scores[said]),
        "agreement": agreement(scores[said]),
    }


def _questions(duel: Duel) -> list[Question]:
    texts = {"model_first": (duel.model, duel.baseline), "baseline_first": (duel.baseline, duel.model)}
    return [
        Question(_question_id(duel, order), ask_for_verdict(duel.instruction, *texts[order]))
        for order in ORDERS
    ]


def _question_id(duel: Duel, order: str) -> str:
    return f"{duel.id}/{order}"


def _identical(duel: Duel) -> bool:
    """Return whether both answers are the same: such a pair is a tie, and the judge is not asked."""
    return duel.model.strip() == duel.baseline.strip()


def _verdict(duel: Duel, answers: Answers) -> dict[str, Any]:
    """Return one prompt's record; `score` is the mean of both orders, or None if one was not read."""
    row: dict[str, Any] = {
        "prompt_id": duel.id,
        "characters": [len(duel.model), len(duel.baseline)],
        "identical": _identical(duel),
    }
    if row["identical"]:
        return row | dict.fromkeys(ORDERS) | {"score": TIE}
    row |= {order: _order(answers, _question_id(duel, order), order) for order in ORDERS}
    known = all(row[order]["verdict"] is not None for order in ORDERS)
    return row | {"score": sum(_scores(row)) / 2 if known else None}


def _order(answers: Answers, id: str, order: str) -> dict[str, Any]:
    """Return one reply: `verdict` is `model`, `baseline`, `tie`, or None for the reason in `unread`.

    `ended` is the server's reason for the reply's end; without a reply, it and the token counts are None.
    """
    reply = answers.replies.get(id)
    if reply is None:
        return {"verdict": None, "unread": _NOT_ANSWERED} | dict.fromkeys(_OF_REPLY)
    preferred, unread = None, CUT_SHORT if reply.is_cut_short else STOPPED
    if reply.finished:
        preferred, unread = read_verdict(reply.text)
    first, second = ("model", "baseline") if order == "model_first" else ("baseline", "model")
    verdict = {None: None, "first": first, "second": second, "tie": "tie"}[preferred]
    said = (reply.text, reply.ended, reply.prompt_tokens, reply.completion_tokens)
    return {"verdict": verdict, "unread": unread, **dict(zip(_OF_REPLY, said, strict=True))}


def _scores(row: dict[str, Any]) -> tuple[float, float]:
    if row["identical"]:
        return TIE, TIE
    first, second = (_SCORES[row[order]["verdict"]] for order in ORDERS)
    return first, second


def _counted(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    unread = Counter(row[order]["unread"] for row in verdicts if not row["identical"] for order in ORDERS)
    del unread[""]
    return {"identical": sum(row["identical"] for row in verdicts), "unread": dict(unread)}


def _side(outputs: Outputs) -> dict[str, Any]:
    return {"name": outputs.name, **outputs.origin, "answers_sha256": outputs.sha256}


def _asked_of(endpoint: Endpoint, settings: JudgeSettings) -> dict[str, Any]:
    """Return the judge and its settings, which hold the name of the key's variable but not the key."""
    return asdict(endpoint) | asdict(settings) | {"wording": WORDING}


def _place(
    model: Outputs, baseline: Outputs, endpoint: Endpoint, settings: JudgeSettings, *, folder: Path
) -> Path:
    """Return the record's path; a short hash is added if another comparison has the same names."""
    names = dict.fromkeys((model.set, model.name, baseline.name, endpoint.model))
    part = "-".join(re.sub(r"[^\w.]+", "-", name).strip("-") for name in names)
    own = _compared([_side(model), _side(baseline)], _asked_of(endpoint, settings))
    plain = folder / f"judged-{part}.json"
    beside = folder / f"judged-{part}-{sha256_json(own)[:8]}.json"
    if not plain.exists():
        return beside if beside.exists() else plain
    there = read_json(plain)
    blocks = [there.get(name) if isinstance(there, dict) else None for name in ("model", "baseline", "judge")]
    if not all(isinstance(block, dict) for block in blocks):
        raise UserError(
            f"{plain}: not one of allo's records of a judge, and a record needs this name: move it elsewhere."
        )
    first, second, judge_block = (dict(block or {}) for block in blocks)
    return plain if _compared([first, second], judge_block) == own else beside


def _compared(sides: Sequence[dict[str, Any]], judge_block: dict[str, Any]) -> list[Any]:
    """Return the values that distinguish comparisons with the same names; a run's new answers replace its old ones."""
    files = [
        side.get("answers_sha256") if "model" not in side and "solutions" not in side else None
        for side in sides
    ]
    return [*files, *(judge_block.get(key) for key in _JUDGE)]
