"""The look at rows decoded together allows rounding, and nothing else."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from allo.models import probe
from allo.models.policy import rounding
from tiny_families import family_model

ROUNDING = rounding(torch.float32)
BROKEN = "gives other logits"


@dataclass
class Planted:
    """Rows whose logits differ from `_alone`'s by a share of their norm."""

    alone: Tensor  # [4 rows, 4 steps, vocabulary]
    share: float
    step_of: list[int] = field(default_factory=lambda: [0])

    def admit(self, prompts: list[list[int]]) -> Tensor:
        return self._next()[::2]

    def step(self, token_ids: Tensor) -> Tensor:
        return self._next()

    def _next(self) -> Tensor:
        number = self.step_of[0]
        self.step_of[0] += 1
        return self.alone[:, number] * (1 + self.share)


@pytest.mark.parametrize(
    ("noise", "share", "found"),
    [
        (0, 0.9 * ROUNDING, None),
        (0, 1.1 * ROUNDING, BROKEN),
        (1.5 * ROUNDING, 2.9 * ROUNDING, None),  # twice what the model differs from itself
        (1.5 * ROUNDING, 3.1 * ROUNDING, BROKEN),
        (0.1, 3.9 * ROUNDING, None),
        (0.1, 4.1 * ROUNDING, BROKEN),  # a noisy model is no licence
        (0, torch.nan, BROKEN),
        (1.5, 0, "gives other logits than whole forward passes"),
        (torch.nan, 0, "gives other logits than whole forward passes"),
    ],
)
def test_rows_may_differ_by_rounding_or_twice_the_models_own_noise(
    noise: float, share: float, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family_model("llama")
    logits = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, dim=0)
    logits -= logits.mean(-1, keepdim=True)
    texts = iter([*logits, *(logits * (1 + noise))])  # the rows with a cache, then without
    monkeypatch.setattr(probe, "_alone", lambda *_, cached: next(texts))
    assert probe.fault(model, "planted", lambda: nullcontext(Planted(logits, share)))[0] == found
