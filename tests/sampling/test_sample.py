"""Sampling: how long a prompt may be, and what is said of those that are longer."""

from pathlib import Path

import pytest
import torch

from allo.errors import UserError
from allo.files.records import Prompt
from allo.models.load import Model, Tokenizer, load_model, load_tokenizer
from allo.models.model_checks import num_positions, prompt_room
from allo.models.tokenization import prompt_ids
from allo.sampling.completions import Completed, complete
from allo.sampling.generate import Batch
from tiny_run import LAB

POSITIONS = 128  # of the laboratory's model


@pytest.fixture(scope="module")
def policy() -> tuple[Model, Tokenizer]:
    return load_model(LAB, dtype=torch.float32, device="cpu"), load_tokenizer(str(LAB))


@pytest.mark.parametrize(
    ("positions", "max_length", "max_new_tokens", "room"),
    [
        (None, 1200, 1024, 1200),
        (8192, 1200, 1024, 1200),
        (2048, 1200, 1024, 1024),
        (1025, 1200, 1024, 1),
        (None, 10, 1024, 10),
    ],
)
def test_a_prompt_has_max_length_tokens_of_its_own_or_what_the_model_leaves(
    positions: int | None, max_length: int, max_new_tokens: int, room: int
) -> None:
    assert prompt_room(positions, max_length=max_length, max_new_tokens=max_new_tokens) == room


@pytest.mark.parametrize("positions", [1024, 512])
def test_completions_that_leave_no_position_for_a_prompt_are_refused(positions: int) -> None:
    with pytest.raises(UserError, match=f"max_new_tokens is 1024, but the model has {positions} positions"):
        prompt_room(positions, max_length=1200, max_new_tokens=1024)


@pytest.mark.parametrize(
    ("max_length", "max_new_tokens", "room", "num_cut"),
    [
        (100, 8, 100, 1),
        (100, 90, POSITIONS - 90, 1),
        (110, 8, 110, 0),
    ],
)
def test_prompts_are_cut_to_their_room_and_counted(
    policy: tuple[Model, Tokenizer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_length: int,
    max_new_tokens: int,
    room: int,
    num_cut: int,
) -> None:
    model, tokenizer = policy
    assert num_positions(model.config) == POSITIONS
    prompts = [Prompt("short", "Tom has 7 pens.\n"), Prompt("long", "Tom has 7 pens.\n" * 18)]
    lengths = [len(prompt_ids(tokenizer, prompt.prompt)) for prompt in prompts]
    assert lengths[0] < 38 and 100 < lengths[1] <= 110
    seen: list[int] = []
    monkeypatch.setattr(
        "allo.sampling.completions.generate",
        lambda _model, _tokenizer, ids, *, numbers, **_: (
            seen.extend(map(len, ids)) or (Batch(n, []) for n in numbers)
        ),
    )
    completed: Completed = complete(
        model,
        tokenizer,
        prompts,
        path=tmp_path / "completions.jsonl",
        description="test",
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        num_generations=1,
        batch_size=2,
    )
    assert seen == [min(length, room) for length in lengths]
    assert completed.num_cut == num_cut
