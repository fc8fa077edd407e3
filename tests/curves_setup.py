"""Logged steps of training stages as the trainers write them, good and with planted faults, and their recipe."""

import math
from typing import Any

RECIPE: dict[str, Any] = {
    "locate": {"criterion": "warmup"},
    "sft": {"training": {"learning_rate": 2e-5, "warmup_steps": 0.03, "gradient_accumulation_steps": 8}},
    "forget": {
        "density": 0.05, "beta": 0.1, "loss": "token", "until": None,
        "training": {"learning_rate": 5e-4, "num_train_epochs": 1.0, "warmup_steps": 0.03},
    },
    "improve": {
        "trainer": "selected", "density": 0.1, "loss": "dpo", "beta": 0.1, "anchor": 0.0, "keep": 0.5,
        "training": {
            "learning_rate": 2e-4, "num_train_epochs": 1.0, "warmup_steps": 0.1, "gradient_accumulation_steps": 1,
        },
    },
}  # fmt: skip
Steps = list[dict[str, float]]


def way(place: float) -> float:
    """Return the share of a run's change that is done at a place in [0, 1]."""
    return 1 - (1 - place) ** 2


def improving(
    *, chosen: float = 0.2, rejected: float = -2.5, beta: float = 0.1, likelihood: float = -0.6, told: float = 0.95,
    soon: float = 0.3, num: int = 40, factor: float = 1.0, noise: list[float] | None = None,
) -> Steps:  # fmt: skip
    """Return a run's logged steps, whose answers gain or lose these nats by its end, as `ImproveTrainer` logs them."""
    noise = noise or [0.0] * num
    steps = []
    for i in range(num):
        up, down = way(i / (num - 1)) * chosen, way(i / (num - 1)) * rejected
        margin = beta * (up - down)
        loss = factor * math.log1p(math.exp(-margin)) * (1 + noise[i % len(noise)])
        steps.append(
            {
                "step": i + 1, "epoch": (i + 1) / num, "loss": loss,
                "rewards/chosen": beta * up, "rewards/rejected": beta * down, "rewards/margins": margin,
                "rewards/accuracies": 0.0 if i == 0 else min(told, 0.5 + i / (soon * num)),
                "logps/chosen": likelihood * (1 + noise[-1 - i % len(noise)]) + up, "logps/rejected": -4.0 + down,
            }
        )  # fmt: skip
    return steps


def forgetting(*, change: float = -0.2, believed: float = 0.9, num: int = 21, **others: float) -> Steps:
    """Return the logged steps of forgetting, whose marked tokens end at this change in nats, as `ForgetTrainer` logs."""
    return [
        {
            "step": i + 1, "epoch": (i + 1) / num, "loss": 0.693 + 0.03 * max(change, -1.0) * way(i / (num - 1)),
            "logratios/forgotten": change * way(i / (num - 1)),
            "probabilities/forgotten": believed * math.exp(change * way(i / (num - 1))),
        }
        | others
        for i in range(num)
    ]  # fmt: skip


def recipe(**changes: Any) -> dict[str, Any]:
    """Return the recipe with other values at dotted keys; a double underscore is a dot."""
    found: dict[str, Any] = {**RECIPE}
    for key, value in changes.items():
        *path, last = key.split("__")
        block = found
        for part in path:
            block[part] = dict(block[part])
            block = block[part]
        block[last] = value
    return found
