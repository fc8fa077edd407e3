"""A summary of tuning: each method's settings against validation accuracy, and its curve over learning rates."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from allo.compare.methods import START
from allo.compare.results import TrialResult
from allo.compare.trials import RATE
from allo.files.artifacts import sha256_json
from allo.stats.metrics import CONFIDENCE
from allo.stats.rate_curves import RateCurve, kl_at_equal_accuracy, robustness
from allo.stats.statistics import share_figure

Json = dict[str, Any]
Candidate = list[TrialResult]  # the trials of one setting, over tuning seeds


def summarise_tuning(trials: list[TrialResult], *, reference: str, seed: int) -> Json:
    """Return for each tuned method every setting tried with its accuracy and KL, the one tested, and its rate curve.

    The curve uses those other settings with which most rates were tried. KL at equal accuracy needs the KL of every
    point and the start's answers to the validation problems; otherwise it is null.
    """
    tuned: dict[str, list[TrialResult]] = {}
    for trial in trials:
        if trial.purpose == "tune" and trial.method != START:
            tuned.setdefault(trial.method, []).append(trial)
    if not tuned:
        return {}
    tested = {trial.method: trial.settings for trial in trials if trial.purpose == "test"}
    candidates = {name: _candidates(own) for name, own in tuned.items()}
    curves = {name: _over_rates(own) for name, own in candidates.items()}
    name = _validation_set(next(iter(tuned.values()))[0])
    start = _start(trials, name)
    return {
        method: {
            "set": name,
            "tried": [_tried(candidate, seed=seed) for candidate in own],
            "taken": tested.get(method),
            "over_rates": {
                "settings": _others(curves[method][0]),
                "rates": [_tried(candidate, seed=seed) for candidate in curves[method]],
                "robustness": _robustness(curves[method], seed=seed) if len(curves[method]) > 1 else None,
                "equal_accuracy": None
                if method == reference or reference not in curves
                else _equal_accuracy(curves[method], curves[reference], start, seed=seed),
            },
        }
        for method, own in candidates.items()
    }


def _candidates(trials: list[TrialResult]) -> list[Candidate]:
    """Group trials by settings, in the order of rates."""
    found: dict[str, Candidate] = {}
    for trial in sorted(trials, key=lambda trial: (trial.settings[RATE], trial.seed)):
        found.setdefault(sha256_json(trial.settings), []).append(trial)
    return list(found.values())


def _over_rates(candidates: list[Candidate]) -> list[Candidate]:
    """Return the largest group of candidates that differ only in rate; of equally large ones, the best."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(sha256_json(_others(candidate)), []).append(candidate)
    return max(groups.values(), key=lambda group: (len(group), max(_right(one).mean() for one in group)))


def _others(candidate: Candidate) -> Json:
    return {key: value for key, value in candidate[0].settings.items() if key != RATE}


def _validation_set(trial: TrialResult) -> str:
    return next(iter(trial.sets))


def _right(candidate: Candidate) -> NDArray[np.float64]:
    """Return (seeds, problems): the share of right samples, or the greedy results without samples."""
    return np.stack([trial.sets[_validation_set(trial)].right() for trial in candidate])


def _start(trials: list[TrialResult], name: str) -> NDArray[np.float64] | None:
    """Return (problems,): the starting model's validation answers, averaged over its trials."""
    found = [trial.sets[name].right() for trial in trials if trial.method == START and name in trial.sets]
    return np.stack(found).mean(0) if found else None


def _tried(candidate: Candidate, *, seed: int) -> Json:
    kl = _kl(candidate)
    return {
        "rate": candidate[0].settings[RATE],
        "settings": _others(candidate),
        "seeds": [trial.seed for trial in candidate],
        "accuracy": share_figure(_right(candidate), seed=seed),
        "kl": None if kl is None else kl[0],
    }


def _kl(candidate: Candidate) -> tuple[float, float] | None:
    """Return the mean KL over tuning seeds, and its standard error from the trials' own intervals."""
    found = [trial.kl for trial in candidate if trial.kl is not None]
    if len(found) < len(candidate):
        return None
    z = stats.norm.ppf((1 + CONFIDENCE) / 2)
    errors = [(kl.high - kl.low) / (2 * z) for kl in found if kl.high is not None and kl.low is not None]
    mean = float(np.mean([kl.value for kl in found]))
    return mean, float(np.sqrt(np.square(errors).sum()) / len(found))


def _robustness(curve: list[Candidate], *, seed: int) -> Json:
    return asdict(robustness(_rates(curve), _answers(curve), seed=seed))


def _equal_accuracy(
    curve: list[Candidate], reference: list[Candidate], start: NDArray[np.float64] | None, *, seed: int
) -> Json | None:
    curves = [_rate_curve(own) for own in (curve, reference)]
    if start is None or curves[0] is None or curves[1] is None:
        return None
    found = kl_at_equal_accuracy(curves[0], curves[1], start=start, seed=seed)
    return None if found is None else asdict(found)


def _rate_curve(curve: list[Candidate]) -> RateCurve | None:
    kls = [kl for candidate in curve if (kl := _kl(candidate)) is not None]
    if len(kls) < len(curve):
        return None
    values, errors = np.array(kls).T
    return RateCurve(_rates(curve), _answers(curve), kl=values, kl_error=errors)


def _rates(curve: list[Candidate]) -> NDArray[np.float64]:
    return np.array([candidate[0].settings[RATE] for candidate in curve], dtype=float)


def _answers(curve: list[Candidate]) -> NDArray[np.float64]:
    return np.stack([_right(candidate).mean(0) for candidate in curve])
