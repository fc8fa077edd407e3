"""Runs that must be the same run: however the step is cut into micro-batches, padded, ordered or recomputed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from allo.models.collate import Batch, CompletionCollator, PairCollator
from allo.training import reference
from allo.training.micro_batches import micro_batches
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from tiny import TOKENIZER, arguments, every_third, model, pairs, trained, weights, wrongs

# Two fp32 orders of summation, carried through four steps.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
# The same arithmetic on the same numbers.
ONE_STEP = {"rtol": 1e-5, "atol": 1e-6}
DENOMINATOR = 8.0  # of a step, however it is cut
DATA = {ForgetTrainer: wrongs, ImproveTrainer: pairs, SftTrainer: wrongs}
SGD = {"optim": "sgd", "learning_rate": 0.3, "num_train_epochs": 2}
# By the clock, or counted in micro-batches.
NOT_OURS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "epoch")


def run(kind: type[SelectedTrainer], folder: Path, **settings: Any) -> SelectedTrainer:
    return trained(kind, DATA[kind](), folder, **(SGD | settings))


def assert_same_run(run: SelectedTrainer, other: SelectedTrainer, **tolerance: float) -> None:
    """Every logged number of every step, and every weight at the end."""
    assert len(run.state.log_history) == len(other.state.log_history) > 4
    for row, expected in zip(run.state.log_history, other.state.log_history, strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - set(NOT_OURS):
            torch.testing.assert_close(
                torch.tensor(float(row[name])), torch.tensor(float(expected[name])), **tolerance, msg=name
            )
    ours, theirs = weights(run.model), weights(other.model)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance, msg=name)
    start = weights(model())
    assert any((ours[name] - start[name]).abs().max() > 1e-3 for name in ours), "nothing was learnt"


@pytest.mark.invariant("Neither accumulation nor padding changes the loss.")
@pytest.mark.parametrize("kind", DATA)
def test_accumulation_equals_one_batch(kind: type[SelectedTrainer], tmp_path: Path) -> None:
    whole = run(kind, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    for size in (4, 2, 1):
        cut = run(kind, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        assert_same_run(cut, whole, **TOLERANCE)


def test_the_last_step_of_an_epoch_may_be_short(tmp_path: Path) -> None:
    rows = wrongs()[:11]  # a step of 8 and one of 3: in micro-batches of 2, of 2 and 1
    runs = [
        trained(
            ForgetTrainer,
            rows,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            **(SGD | {"num_train_epochs": 3}),
        )
        for size in (2, 8)
    ]
    assert_same_run(*runs, **TOLERANCE)


@dataclasses.dataclass(frozen=True)
class Wider:
    """A collator's batch with pad columns after it, as a long row beside them or `pad_to_multiple_of` makes."""

    collator: CompletionCollator | PairCollator
    columns: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        batch = self.collator(rows)
        width = batch["input_ids"].shape[1]
        row, column = batch["sources"] // width, batch["sources"] % width
        batch["sources"] = row * (width + self.columns) + column
        if batch["attention_mask"].dim() == 4:
            batch["attention_mask"] = torch.nn.functional.pad(
                batch["attention_mask"], (0, 0, 0, self.columns)
            )
        fill = {"input_ids": self.collator.pad_id}
        return {
            name: torch.nn.functional.pad(tensor, (0, self.columns), value=fill.get(name, 0))
            for name, tensor in batch.items()
        }


def gradient_of(trainer: SelectedTrainer, batches: Sequence[Batch]) -> tuple[float, Tensor]:
    """Loss and flat gradient of one optimizer step made of `batches`."""
    losses = [trainer.loss(batch, denominator=DENOMINATOR) for batch in batches]
    for loss in losses:
        loss.backward()
    gradient = torch.cat([flat.grad for flat in trainer.selected.parameters()])
    for flat in trainer.selected.parameters():
        flat.grad = None
    return sum(loss.item() for loss in losses), gradient


@pytest.fixture(scope="module", params=DATA)
def moved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SelectedTrainer:
    """A trainer some steps from its reference, so that the filter and the weights matter."""
    return run(request.param, tmp_path_factory.mktemp("moved"))


@pytest.mark.invariant("Neither accumulation nor padding changes the loss.")
def test_padding_changes_nothing(moved: SelectedTrainer) -> None:
    rows = moved.train_dataset[:4]
    loss, gradient = gradient_of(moved, [moved.data_collator(rows)])
    wider_loss, wider_gradient = gradient_of(moved, [Wider(moved.data_collator, 9)(rows)])
    assert wider_loss == pytest.approx(loss, rel=ONE_STEP["rtol"])
    torch.testing.assert_close(wider_gradient, gradient, **ONE_STEP)


def test_a_long_row_beside_it_changes_no_rows_share(moved: SelectedTrainer) -> None:
    rows = sorted(moved.train_dataset, key=lambda row: moved.data_collator.num_tokens([row]))
    short, long = rows[:3], rows[-1:]
    together = gradient_of(moved, [moved.data_collator(short + long)])
    apart = gradient_of(moved, [moved.data_collator(short), moved.data_collator(long)])
    assert together[0] == pytest.approx(apart[0], rel=ONE_STEP["rtol"])
    torch.testing.assert_close(together[1], apart[1], **ONE_STEP)


def test_the_order_of_rows_inside_a_step_is_irrelevant(moved: SelectedTrainer) -> None:
    rows, collate = moved.train_dataset, moved.data_collator
    loss, gradient = gradient_of(moved, [collate(rows[:4]), collate(rows[4:8])])
    mixed = [rows[place] for place in (7, 2, 0, 5, 1, 6, 3, 4)]
    other_loss, other_gradient = gradient_of(moved, [collate(mixed[:4]), collate(mixed[4:])])
    assert other_loss == pytest.approx(loss, rel=ONE_STEP["rtol"])
    torch.testing.assert_close(other_gradient, gradient, **ONE_STEP)


@pytest.mark.invariant(
    "A shared prefix, a token budget, a precomputed reference and activation checkpointing change no loss."
)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad:UserWarning"
)  # the reference's pass
def test_activation_checkpointing_keeps_the_trajectory(reentrant: bool, tmp_path: Path) -> None:
    plain = run(ImproveTrainer, tmp_path)
    settings = {"use_reentrant": reentrant}
    saving = run(
        ImproveTrainer, tmp_path, activation_checkpointing=True, activation_checkpointing_kwargs=settings
    )
    assert saving.model.is_activation_checkpointing
    assert_same_run(saving, plain, **ONE_STEP)


def test_a_dataset_is_its_list_of_rows(tmp_path: Path) -> None:
    listed = run(ImproveTrainer, tmp_path)
    tabled = trained(ImproveTrainer, Dataset.from_list(pairs()), tmp_path, **SGD)
    assert_same_run(tabled, listed, rtol=0, atol=0)


def test_a_second_trainer_on_the_released_model_is_a_first_one_on_its_copy(tmp_path: Path) -> None:
    first = run(ForgetTrainer, tmp_path)
    first.selected.release()
    assert all(param.requires_grad for param in first.model.parameters())
    copied = model()
    copied.load_state_dict(first.model.state_dict())
    policies = (first.model, copied)
    second, alone = (trained(ImproveTrainer, pairs(), tmp_path, policy=each, **SGD) for each in policies)
    assert_same_run(second, alone, rtol=0, atol=0)


def test_dropout_is_off_in_policy_and_reference(tmp_path: Path) -> None:
    policy = model(attention_dropout=0.5).train()
    trainer = ImproveTrainer(policy, arguments(tmp_path), pairs(), TOKENIZER, mask=every_third(policy))
    batch = trainer.data_collator(trainer.train_dataset)
    logratios, logps = trainer.logratios(batch)
    assert torch.equal(logratios, torch.zeros_like(logratios))
    assert torch.equal(trainer.logratios(batch)[1], logps)


@pytest.mark.invariant(
    "A shared prefix, a token budget, a precomputed reference and activation checkpointing change no loss."
)
@pytest.mark.parametrize("kind", DATA)
def test_a_token_budget_changes_no_loss(kind: type[SelectedTrainer], tmp_path: Path) -> None:
    whole = run(kind, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    longest = max(whole.data_collator.num_tokens([row]) for row in whole.train_dataset)
    for budget in (1, 3 * longest, 100 * longest):
        settings = SGD | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        cut = trained(kind, DATA[kind](), tmp_path, own={"max_tokens_per_batch": budget}, **settings)
        assert_same_run(cut, whole, **TOLERANCE)


def test_a_token_budget_holds_with_its_padding(tmp_path: Path) -> None:
    policy = model()
    policy.config.max_position_embeddings = 256
    rows = [*pairs(), pairs()[0] | {"prompt": 20 * pairs()[0]["prompt"]}]
    trainer = ImproveTrainer(policy, arguments(tmp_path), rows, TOKENIZER, mask=every_third(policy))
    num_tokens, collate = trainer.data_collator.num_tokens, trainer.data_collator
    budget = 3 * max(num_tokens([row]) for row in trainer.train_dataset[:-1])
    assert num_tokens(trainer.train_dataset[-1:]) > budget, "one row is too long for it"
    parts = micro_batches(trainer.train_dataset, num_tokens, max_rows=1, max_tokens=budget)
    assert sorted(row["number"] for part in parts for row in part) == list(range(len(rows)))
    assert len(parts[0]) == 1 and any(len(part) > 1 for part in parts)
    assert all(collate(part)["input_ids"].numel() <= budget for part in parts[1:])


@pytest.mark.invariant(
    "A shared prefix, a token budget, a precomputed reference and activation checkpointing change no loss."
)
@pytest.mark.parametrize("kind", [ForgetTrainer, ImproveTrainer])
def test_a_precomputed_reference_is_the_swapped_one(kind: type[SelectedTrainer], tmp_path: Path) -> None:
    swapped = run(kind, tmp_path / "swapped")
    computed = trained(kind, DATA[kind](), tmp_path / "computed", own={"reference": "precomputed"}, **SGD)
    assert_same_run(computed, swapped, **TOLERANCE)
    assert not computed.selected.slots and computed.selected.num_bytes < swapped.selected.num_bytes


def test_a_precomputed_reference_is_kept_for_the_same_rows_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = reference.per_token_logps
    monkeypatch.setattr(reference, "per_token_logps", lambda *a: calls.append(0) or original(*a))

    def num_passes(policy: PreTrainedModel, rows: list[dict[str, Any]]) -> int:
        calls.clear()
        own = {"reference": "precomputed"}
        trained(ImproveTrainer, rows, tmp_path, policy=policy, own=own, **SGD)
        return len(calls)

    other = model()
    other.get_input_embeddings().weight.data[3, 1] += 1
    assert num_passes(model(), pairs()) > 0
    assert num_passes(model(), pairs()) == 0
    assert num_passes(other, pairs()) > 0, "other weights"
    assert num_passes(model(), pairs()) > 0, "these were in the file before the others"
    assert num_passes(model(), pairs()[::-1]) > 0, "other rows"


def test_a_shared_prefix_is_two_rows(tmp_path: Path) -> None:
    shared = run(ImproveTrainer, tmp_path)
    assert shared.data_collator.shared_prefix
    apart = trained(ImproveTrainer, pairs(), tmp_path, own={"shared_prefix": False}, **SGD)
    assert_same_run(shared, apart, **TOLERANCE)


def test_a_model_that_cannot_share_a_prefix_says_so_and_takes_two_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = model(sliding_window=8)
    policy.config.sliding_window = 8
    trainer = ImproveTrainer(policy, arguments(tmp_path), pairs(), TOKENIZER, mask=every_third(policy))
    assert not trainer.data_collator.shared_prefix
    assert "takes no shared prefix" in capsys.readouterr().err
