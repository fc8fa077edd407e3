"""Runs and models for a harness."""

import importlib.util
from typing import Any

import pytest

from allo.files.evaluation import HarnessModel

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed; `pip install allo-align[eval]` brings it",
)
NUM_PROBLEMS = 20
MAX_NEW_TOKENS = 40
SIZE_OF_CHANGE = 0.6  # of every third weight: enough for other completions, not for none that are right
# A run of one short training, nothing located; two problems are evaluated.
SHORT = (
    *("forget=null", "score=null", "locate=null", "sft=null", "sample.num_generations=4", "data.limit=4"),
    *(
        "improve.density=1.0",
        "improve.training.max_steps=1",
        "improve.training.lr_scheduler_type=constant",
        "evaluate.kl=null",
    ),
    *("evaluate.sets.test.limit=2", "evaluate.num_generations=0"),
)


def do(job: Any, *names: str) -> list[HarnessModel]:
    found: list[HarnessModel] = job.do(list(names), dtype=None, device="cpu", trust_remote_code=False)
    return found
