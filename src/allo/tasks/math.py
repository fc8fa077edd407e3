r"""MATH: competition problems with worked solutions and answers in LaTeX (arXiv 2103.03874)."""

from functools import partial
from typing import Any

from allo.tasks import base
from allo.tasks.answers.final_answer import last_boxed

HUB = base.Hub(
    "EleutherAI/hendrycks_math",
    (
        *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
        *("number_theory", "prealgebra", "precalculus"),
    ),
)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    r"""Return a row in our form; the answer is the last one that the solution boxes."""
    answer = last_boxed(row["solution"])
    if answer is None:
        raise ValueError("the solution boxes no answer")
    return {"question": row["problem"], "answer": answer, "solution": row["solution"]}


load = partial(base.load, "math", hub=HUB, from_hub=from_hub)
"""Yields prompts of `train` or `test`, subject by subject; the answer is a number or a LaTeX expression."""
