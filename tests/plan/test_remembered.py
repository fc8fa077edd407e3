"""A rehearsal that remembers results plans the same bytes as one in which torch infers each, family by family."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allo.plan import plan_stage, rehearsal
from allo.plan.live_bytes import LiveBytes
from allo.plan.memory import StagePlan
from allo.plan.rehearsal import Rehearsal
from allo.plan.remembered import Remembered
from allo.recipe import Recipe
from tiny_families import config_of

TRAINING = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
STAGES = ("sample", "improve")
FAMILIES = {
    "llama": {"num_hidden_layers": 5},
    "olmo3": {},  # sliding and full attention in turn
    "deepseek_v3": {"num_hidden_layers": 4},  # experts after a dense layer
    "qwen3_next": {},  # recurrent states and attention
    "gemma3n_text": {},  # layers that share keys and values
    "gemma4_text": {},
    "llama4_text": {},  # complex angles
}


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    def make(family: str, **settings: Any) -> Recipe:
        config_of(family, **settings).save_pretrained(tmp_path)
        return Recipe.model_validate(
            {
                "name": "plan",
                "model": str(tmp_path),
                "dtype": "bfloat16",
                "device": "cpu",
                "max_length": 30,
                "data": {"task": "planted_flaws"},
                "sample": {"num_generations": 2, "max_new_tokens": 12, "batch_size": 8},
                "locate": {"criterion": "gradient", "training": TRAINING},
                "score": {"scorer": "confidence", "batch_size": 4},
                "forget": None,
                "improve": {"training": TRAINING, "density": 0.3},
                "evaluate": {"sets": {"test": {"task": "planted_flaws"}}, "max_new_tokens": 12},
            }
        )

    return make


def plans(asked: Recipe) -> list[StagePlan]:
    """The plans of some stages, without kinds of no bytes."""
    made = [plan_stage(asked, stage) for stage in STAGES]
    return [replace(one, bytes={kind: size for kind, size in one.bytes.items() if size}) for one in made]


@pytest.mark.parametrize(
    "family",
    [name if name == "olmo3" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_remembered_results_change_no_byte(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    asked = recipe(family, **FAMILIES[family])
    planned = plans(asked)
    monkeypatch.setattr(rehearsal, "_REMEMBERED", {})
    monkeypatch.setattr(Remembered, "of", lambda *_: None)
    assert planned == plans(asked)


def _in_place(given: torch.Tensor) -> torch.Tensor:
    return given.add_(1).mul_(2)


@pytest.mark.parametrize(
    "work",
    [
        lambda given: given[1:4].t()[:, 1:] + 1,
        lambda given: given.view(torch.int32)[..., 1:].clone(),
        lambda given: torch.view_as_real(torch.view_as_complex(given.unflatten(-1, (-1, 2)))) * 2,
        lambda given: given.split(3, dim=1)[1] * 2,
        lambda given: given.as_strided((2, 2), (1, 2), 3).clone(),
        lambda given: given[torch.tensor([True, False, True, False])] * 2,
        lambda given: given[torch.tensor([True, True, True, False])] * 2,
        lambda given: torch.nn.functional.dropout(given.softmax(-1)).topk(2).values,
        lambda given: given.clone().unsqueeze_(0).squeeze_(0) + given.new_empty(()),
        lambda given: given * 2 + given.long() * 2 + (given.long() * 2.0),
        _in_place,
    ],
)
def test_repeated_operations_keep_shapes_views_and_bytes(
    work: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Each is done three times, with tensors at other places of their storage, as with numbers."""

    def done(live: LiveBytes) -> list[Any]:
        found: list[Any] = []
        with live:
            whole = torch.ones(12, 8)
            for start in (0, 4, 8):
                made = work(whole[start : start + 4])
                found += [made.shape, made.stride(), made.dtype, made.storage_offset(), live.now]
                found.append(made.untyped_storage()._cdata == whole.untyped_storage()._cdata)
                del made
        return [*found, live.peak, live.now]

    assert done(Rehearsal()) == done(Rehearsal()) == done(LiveBytes())
