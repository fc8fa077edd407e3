"""Summaries of a model's answers on an evaluation set: accuracies, or rewards and wins, with intervals.

A row is a prompt with its answers, as in `08-eval.json`.
"""

from dataclasses import asdict
from typing import Any

from allo.stats.metrics import Estimate, bootstrap, pass_at_k, wilson
from allo.tasks.rewards import wins


def accuracies_on_set(rows: list[dict[str, Any]], *, seed: int) -> dict[str, Any]:
    """Return one set's accuracies with intervals; pass@k for k = 1, 2, 4, ... up to the samples of a prompt."""
    greedy = [row["greedy"]["correct"] for row in rows if "greedy" in row]
    sampled = [[float(answer["correct"]) for answer in row["sampled"]] for row in rows]
    num_samples = len(sampled[0])
    powers = [2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples]
    hits = [int(sum(row)) for row in sampled]
    return {
        "num_prompts": len(rows),
        "greedy": _accuracy(wilson(greedy)) if greedy else None,
        "sampled": _accuracy(bootstrap(sampled, seed=seed)) if num_samples else None,
        "pass_at": {str(k): pass_at_k(hits, num_samples=num_samples, k=k) for k in powers},
        "mean_tokens": _mean_tokens(rows),
    }


def rewards_on_set(
    rows: list[dict[str, Any]], *, start: list[dict[str, Any]] | None, seed: int
) -> dict[str, Any]:
    """Return one set's mean rewards and, given the start's answers to the same prompts, the win rate over them.

    Every sample of a prompt is compared with every sample of the start. Intervals are over prompts.
    """
    found: dict[str, Any] = {}
    for kind in ("greedy", "sampled"):
        own = _by_kind(rows, kind)
        if not own[0]:
            continue
        against = own if start is None else _by_kind(start, kind)
        won = [wins(mine, theirs) for mine, theirs in zip(own, against, strict=True)]
        found[kind] = {
            "mean": asdict(bootstrap(own, seed=seed)),
            "win_rate": None if start is None else asdict(bootstrap(won, seed=seed)),
        }
    return {
        "num_prompts": len(rows),
        "greedy": None,
        "sampled": None,
        "pass_at": {},
        "mean_tokens": _mean_tokens(rows),
        "rewards": found,
    }


def answers_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all completions of a prompt."""
    return [*row["sampled"], *_greedy(row)]


def _greedy(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["greedy"]] if "greedy" in row else []


def _by_kind(rows: list[dict[str, Any]], kind: str) -> list[list[float]]:
    """Return the rewards of each prompt's greedy answer, or of its samples."""
    return [
        [answer["reward"] for answer in (_greedy(row) if kind == "greedy" else row["sampled"])]
        for row in rows
    ]


def _mean_tokens(rows: list[dict[str, Any]]) -> float:
    lengths = [answer["num_tokens"] for row in rows for answer in answers_of(row)]
    return sum(lengths) / len(lengths)


def _accuracy(estimate: Estimate) -> dict[str, Any]:
    return {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high, "num": estimate.num}
