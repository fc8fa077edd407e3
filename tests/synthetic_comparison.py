"""A comparison folder whose truth is known: answers drawn from accuracies that each method was given."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 8
PROMPTS = 120
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 1000
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
SETS = ("test", "reworded")
SEED_APART = 0.25
LOGGING_STEPS = 2
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Method:
    """`accuracy` on the test sets; `curve`: validation accuracy and KL at each of RATES; `density` is a recipe key.

    `losses`: of improving, of the first seed; each further seed's are higher by SEED_APART and end a step sooner.
    """

    accuracy: float
    kl: float = 0.01
    curve: tuple[tuple[float, float], ...] = ()
    density: float = 1.0
    losses: tuple[float, ...] = ()


# ALLO is far above DPO, which is above nothing else; SimPO is ALLO by another name.
METHODS: Mapping[str, Method] = {
    "allo": Method(
        0.70, 0.02, ((0.60, 0.01), (0.66, 0.02), (0.70, 0.03), (0.70, 0.05), (0.69, 0.08)), density=0.1
    ),
    "dpo": Method(0.55, 0.05, ((0.50, 0.02), (0.56, 0.06), (0.50, 0.2), (0.40, 0.5), (0.30, 1.0))),
    "simpo": Method(0.70, 0.04),
}
START_ACCURACY = 0.45


def write(folder: Path, *, methods: Mapping[str, Method] = METHODS, seeds: tuple[int, ...] = SEEDS) -> None:
    """Every trial of these methods, and of the start, which answers the validation set too."""
    draw = Draw()
    for seed in seeds:
        put(folder, trial("start", seed, draw.sets(START_ACCURACY, seed, SETS)))
    validation = draw.sets(START_ACCURACY, TUNING_SEED, ("validation",))
    put(folder, trial("start", TUNING_SEED, validation, purpose="tune"))
    for name, method in methods.items():
        for rate, (accuracy, kl) in zip(RATES, method.curve, strict=False):
            sets = draw.sets(accuracy, TUNING_SEED, ("validation",))
            put(
                folder,
                trial(name, TUNING_SEED, sets, rate=rate, purpose="tune", kl=kl, density=method.density),
            )
        for seed in seeds:
            sets = draw.sets(method.accuracy, seed, SETS)
            kl = method.kl * (1 + 0.1 * draw.rng.random())
            content = trial(name, seed, sets, kl=kl, density=method.density)
            if method.losses:
                content["losses"] = {"improve": losses(method, seeds.index(seed))}
            put(folder, content)


def losses(method: Method, place: int) -> list[float]:
    """One seed's; `place` among the seeds."""
    return [loss + place * SEED_APART for loss in method.losses[: len(method.losses) - place]]


@dataclass
class Draw:
    """Problems have their own difficulty, the same for every model."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    difficulty: Any = field(default_factory=lambda: np.random.default_rng(1).normal(0, 0.15, PROMPTS))

    def sets(self, accuracy: float, seed: int, names: tuple[str, ...]) -> dict[str, Any]:
        luck = 0.01 * self.rng.normal()
        chance = np.clip(accuracy + self.difficulty - self.difficulty.mean() + luck, 0.02, 0.98)
        return {
            name: {
                "prompts": [f"{name}-{i}" for i in range(PROMPTS)],
                "greedy": (self.rng.random(PROMPTS) < chance).astype(int).tolist(),
                "sampled": {"correct": self.rng.binomial(SAMPLES, chance).tolist(), "of": SAMPLES},
                "mean_tokens": 20.0 + seed % 7,
            }
            for name in names
        }


def trial(
    method: str,
    seed: int,
    sets: dict[str, Any],
    *,
    rate: float = 1.0,
    purpose: str = "test",
    kl: float | None = None,
    density: float = 1.0,
) -> dict[str, Any]:
    trained = method != "start"
    return {
        "schema": 1,
        "method": method,
        "settings": {"rate": rate} if trained else {},
        "seed": seed,
        "purpose": purpose,
        "recipe": {
            "seed": seed,
            "improve": {"density": density, "training": {"logging_steps": LOGGING_STEPS}},
        },
        "commit": COMMIT,
        "dirty": False,
        "versions": {"torch": "2.13.0"},
        "hardware": "2 CPU cores",
        "cost": {
            "seconds": 10.0 + seed % 3 if trained else 0.0,
            "peak_memory_bytes": 5e8 if trained else 0,
            "training_state_bytes": 1e6 if trained else 0,
            "trained_weights": round(1e6 * density) if trained else 0,
            "density": density if trained else 0.0,
        },
        "sets": sets,
        "kl": None if kl is None else {"set": "unrelated", "value": kl, "low": 0.9 * kl, "high": 1.1 * kl},
        "chosen_drop": 0.1 if trained else None,
    }


def put(folder: Path, content: dict[str, Any]) -> Path:
    rate = content["settings"].get("rate", 0)
    path = (
        folder
        / "trials"
        / content["method"]
        / f"{content['purpose']}-rate-{rate}-seed-{content['seed']}.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
