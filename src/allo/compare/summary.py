"""A comparison's summary: each method's figures with intervals, and its difference to the reference method.

Only trials of purpose `test` enter the results; tuning_summary.py summarises those of purpose `tune`. Seeds and
problems are paired: a difference is taken over the seeds that both methods have, problem by problem.
"""

from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from allo.compare.methods import START
from allo.compare.results import TrialResult, check_results, read_results
from allo.compare.seen import sees
from allo.compare.tables import to_markdown
from allo.compare.tuning_summary import summarise_tuning
from allo.errors import UserError
from allo.files.artifacts import write_atomic, write_json
from allo.stats.metrics import Estimate
from allo.stats.statistics import (
    Grid,
    crossed_bootstrap,
    crossed_p,
    holm,
    mean_over_seeds,
    seeds_p,
    share_figure,
)

SCHEMA = 1
SEED = 0  # of the bootstrap and of the permutation tests
COMPARED = ("sampled", "greedy")  # kinds of accuracy that are tested; pass@k has intervals only
COSTS = ("seconds", "peak_memory_bytes", "training_state_bytes", "trained_weights", "density")

Json = dict[str, Any]


def write_summary(folder: Path, *, reference: str = "allo") -> Json:
    """Summarise a comparison folder in its `comparison.json` and, for readers, `comparison.md`."""
    summary = summarise(folder, reference=reference)
    write_json(folder / "comparison.json", summary)
    write_atomic(folder / "comparison.md", to_markdown(summary))
    return summary


def summarise(folder_or_trials: Path | list[TrialResult], *, reference: str = "allo") -> Json:
    """Return the content of `comparison.json`. A figure is {"value", "low", "high"}; without an interval both are
    null.

    `methods.NAME.against` is that method minus the reference. `p` covers new seeds and problems, `p_holm` corrects it
    over every method and set, and `p_seeds` flips the signs of whole seeds. Raises `UserError` for broken
    or unequal trials, and if the reference has no test trial.
    """
    trials, failed = folder_or_trials, list[str]()
    if isinstance(trials, Path):
        folder, trials = trials / "failed", read_results(trials)
        failed = [str(path.relative_to(folder)) for path in sorted(folder.glob("*/*.json"))]
    check_results(trials)
    tested = by_method(trial for trial in trials if trial.purpose == "test")
    if reference not in tested:
        known = ", ".join(name for name in tested if name != START) or "none"
        raise UserError(
            f"no finished test trial of the reference method {reference!r}. Methods with test trials: {known}."
        )
    methods = {name: _figures(own) for name, own in tested.items()}
    for name in tested:
        methods[name]["against"] = None if name == reference else _against(tested[name], tested[reference])
    _correct([entry["against"] for entry in methods.values() if entry["against"]])
    sets = {
        name: {"prompts": len(result.prompts), "samples": result.sampled.of if result.sampled else 0}
        for name, result in tested[reference][0].sets.items()
    }
    return {
        "schema": SCHEMA,
        "reference": reference,
        "made_with": provenance(trials),
        "failed": failed,
        "sets": sets,
        "methods": methods,
        "best_other": {name: _best_other(methods, name, reference) for name in sets},
        "tuning": summarise_tuning(trials, reference=reference, seed=SEED),
    }


def by_method(trials: Iterable[TrialResult]) -> dict[str, list[TrialResult]]:
    """Return test trials by method, each in the order of seeds, the start first.

    Raises `UserError` if a method has two trials of a seed, or differing settings: only its tuned setting is
    compared.
    """
    found: dict[str, list[TrialResult]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.method != START, trial.method, trial.seed)):
        own = found.setdefault(trial.method, [])
        if own and own[0].settings != trial.settings:
            raise UserError(
                f"{trial.path}: tested with {trial.settings}, but {own[0].path} with {own[0].settings}. A method is "
                "compared with one setting, the tuned one: remove the test trials of the other."
            )
        own.append(trial)
    return found


def provenance(trials: Iterable[TrialResult]) -> Json:
    """Return the commits, versions and machines behind the trials, each once."""
    trials = list(trials)
    versions = [", ".join(f"{k} {v}" for k, v in trial.versions.items()) for trial in trials]
    return {
        "commits": sorted({str(trial.commit) for trial in trials}),
        "dirty": sorted(str(trial.path.name) for trial in trials if trial.dirty is not False),
        "versions": sorted(set(versions)),
        "hardware": sorted({str(trial.hardware) for trial in trials}),
    }


def grid(trials: list[TrialResult], name: str, kind: str) -> Grid | None:
    """Return (seeds, problems) of one kind of accuracy on one set, or None unless every trial has it."""
    rows = [trial.sets[name].rows().get(kind) if name in trial.sets else None for trial in trials]
    present = [row for row in rows if row is not None]
    return np.stack(present) if len(present) == len(rows) else None


def _figures(trials: list[TrialResult]) -> Json:
    return {
        "settings": trials[0].settings,
        "seeds": [trial.seed for trial in trials],
        "sees": sees(trials[0].method, trials[0].recipe),
        "sets": {name: _set_figures(trials, name) for name in trials[0].sets},
        "kl": _kl_figure(trials),
        "chosen_drop": _scalar(trials, lambda trial: trial.chosen_drop),
        "cost": {key: _scalar(trials, attrgetter(f"cost.{key}")) for key in COSTS},
    }


def _set_figures(trials: list[TrialResult], name: str) -> Json:
    kinds = trials[0].sets[name].rows()
    grids = {kind: grid(trials, name, kind) for kind in kinds}
    figures = {kind: share_figure(values, seed=SEED) for kind, values in grids.items() if values is not None}
    return figures | {"tokens": _scalar(trials, lambda trial: trial.sets[name].mean_tokens)}


def _scalar(trials: list[TrialResult], of: Callable[[TrialResult], float | None]) -> Json | None:
    """Return a figure with one value per seed and Student's interval; a single seed has no interval."""
    values = [value for trial in trials if (value := of(trial)) is not None]
    if len(values) < len(trials):
        return None
    if len(values) == 1:
        return {"value": values[0], "low": None, "high": None}
    return mean_over_seeds(values).figure


def _kl_figure(trials: list[TrialResult]) -> Json | None:
    """Return KL over seeds; a single seed has the trial's own interval over prompts."""
    only = trials[0].kl
    if len(trials) == 1 and only is not None:
        return {"value": only.value, "low": only.low, "high": only.high}
    return _scalar(trials, lambda trial: trial.kl.value if trial.kl else None)


def _against(trials: list[TrialResult], reference: list[TrialResult]) -> Json | None:
    """Return a method less the reference; None if they share no seed.

    A start that was evaluated once is compared with every seed of the reference.
    """
    once = trials[0].method == START and len(trials) == 1
    own = {trial.seed: trial for trial in trials} if not once else {r.seed: trials[0] for r in reference}
    pairs = [(own[other.seed], other) for other in reference if other.seed in own]
    if not pairs:
        return None
    left, right = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    shared = [name for name in right[0].sets if all(name in trial.sets for trial in left)]
    sets = {name: found for name in shared if (found := _set_against(left, right, name))}
    kls = [(a.kl.value - b.kl.value) for a, b in pairs if a.kl and b.kl]
    kl = _difference(mean_over_seeds(kls), np.array(kls)[:, None]) if len(kls) == len(pairs) > 1 else None
    return {"seeds": len(pairs), "sets": sets, "kl": kl}


def _set_against(left: list[TrialResult], right: list[TrialResult], name: str) -> Json:
    found = {}
    for kind in COMPARED:
        values, others = grid(left, name, kind), grid(right, name, kind)
        if values is not None and others is not None:
            differences = values - others
            found[kind] = _difference(crossed_bootstrap(differences, seed=SEED), differences) | {
                "p_seeds": seeds_p(differences, seed=SEED) if len(differences) > 1 else None,
            }
    return found


def _difference(estimate: Estimate, differences: Grid) -> Json:
    return {"difference": estimate.figure, "p": crossed_p(differences)}


def _correct(comparisons: list[Json]) -> None:
    """Add Holm's correction to each p: over all methods and sets of one kind of accuracy, or all methods for KL."""
    families = [[each["kl"] for each in comparisons if each["kl"]]]
    for kind in COMPARED:
        found = [each["sets"][name] for each in comparisons for name in each["sets"]]
        families.append([one[kind] for one in found if kind in one])
    for family in families:
        for entry, corrected in zip(family, holm([entry["p"] for entry in family]), strict=True):
            entry["p_holm"] = corrected


def _best_other(methods: Json, name: str, reference: str) -> str | None:
    """Return the method with the best accuracy on a set, except the reference and the start."""
    others = {
        method: found.get("sampled", found.get("greedy"))
        for method, entry in methods.items()
        if method not in (START, reference) and (found := entry["sets"].get(name))
    }
    return max(others, key=lambda method: others[method]["value"], default=None)
