"""Kinds of training data that a method sees, derived from its trials' recipe."""

from collections.abc import Mapping
from typing import Any

from allo.compare.methods import START
from allo.recipe.criteria import CRITERIA

KINDS = ("solutions", "right samples", "wrong samples", "rewards")
SOLUTIONS, RIGHT, WRONG, REWARDS = KINDS

_BY_LOSS = {"sft": {SOLUTIONS}, "rft": {RIGHT}}
_BY_TRAINER = {"rloo": {REWARDS}, "grpo": {REWARDS}}
_PAIRS = {RIGHT, WRONG}
_BY_SCORER = {
    "edit": {SOLUTIONS, RIGHT},  # solutions for prompts without a right sample
    "privileged": {SOLUTIONS, RIGHT},
    "rewriter": {SOLUTIONS},
    "contrastive": _PAIRS,
    "right_confidence": {RIGHT},
    "advantage": _PAIRS,
    "implicit": _PAIRS,  # through the warm-up
    "confidence": set[str](),
    "uniform": set[str](),
    "random": set[str](),
}


def sees(method: str, recipe: Mapping[str, Any]) -> list[str]:
    """Return the kinds that a trial's training stages read, in the order of `KINDS`.

    Right and wrong samples of ready pairs are their chosen and rejected answers. A user's own scorer may read
    everything known about a completion, and a user's own criterion may read the pairs.
    """
    locate, score, forget, improve = (recipe.get(key) for key in ("locate", "score", "forget", "improve"))
    found: set[str] = set()
    if method == START:
        return []
    if locate is not None:
        criterion = CRITERIA.get(locate.get("criterion", "warmup"))
        found |= set() if criterion and not criterion.sees_pairs else _PAIRS
    if forget is not None and score is not None:
        shown = _BY_SCORER.get(score.get("scorer", "implicit"), {SOLUTIONS, RIGHT})
        found |= {WRONG} | (shown if score.get("solutions", True) else shown - {SOLUTIONS})
    if improve is not None:
        trained = _BY_TRAINER.get(improve.get("trainer", "selected"))
        found |= trained or _BY_LOSS.get(improve.get("loss", "dpo"), _PAIRS)
    return [kind for kind in KINDS if kind in found]
