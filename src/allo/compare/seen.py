"""Kinds of training data that a method sees, derived from its trials' recipe."""

from collections.abc import Mapping
from typing import Any

from allo.compare.methods import START
from allo.recipe.criteria import CRITERIA
from allo.recipe.kinds import KINDS, PAIRS, SOLUTIONS, WRONG
from allo.recipe.losses import kinds_seen_by
from allo.recipe.scores import scorer_entry
from allo.recipe.trainers import TRAINERS


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
        found |= set() if criterion and not criterion.sees_pairs else PAIRS
    if forget is not None and score is not None:
        shown = scorer_entry(score.get("scorer", "implicit")).sees
        found |= {WRONG} | (shown if score.get("solutions", True) else shown - {SOLUTIONS})
    if improve is not None:
        trained = TRAINERS[improve.get("trainer", "selected")].sees
        found |= kinds_seen_by(improve.get("loss", "dpo")) if trained is None else trained
    return [kind for kind in KINDS if kind in found]
