"""Training on whole prompts takes the steps of single rows, with the same loss, however it is cut or stopped."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpointing import SAVING, Stop

from allo.errors import UserError
from allo.models.collate import Batch, CompletionCollator, PairCollator, grouped
from allo.models.policy import per_token_logps
from allo.models.rows import counted_pairs
from allo.recipe import Forget, Improve, Locate
from allo.recipe.training import Group
from allo.training import reference
from allo.training.dpo_passes import DpoPasses
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.group_order import GroupSampler
from allo.training.micro_batches import micro_batches
from allo.training.run import train
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from test_invariants import SGD, TOLERANCE, assert_same_run
from tiny import TOKENIZER, arguments, every_third, feedback, model, pairs_of_prompts, trained, wrongs

KINDS = {
    "improve": (ImproveTrainer, {}),
    "forget": (ForgetTrainer, {}),
    "likelihood": (SftTrainer, {}),
    "kto": (FeedbackTrainer, {"loss": "kto", "beta": 0.5}),
}
GROUPS = {"group": "prompt"}


def rows_of(kind: type[SelectedTrainer]) -> list[dict[str, Any]]:
    if kind is ImproveTrainer:
        return pairs_of_prompts()
    found = []
    for number, pair in enumerate(pairs_of_prompts()):
        row = {"prompt": pair["prompt"], "completion": pair["rejected"]}
        if kind is FeedbackTrainer:
            row |= {"completion": pair["chosen"], "label": True} if number % 2 else {"label": False}
        if kind is ForgetTrainer:
            length = len(TOKENIZER(pair["rejected"], add_special_tokens=False).input_ids) + 1
            row["token_weights"] = [float((number + place) % 3 != 0) for place in range(length)]
        found.append(row)
    return found


def run(kind: str, folder: Path, *, own: dict[str, Any] | None = None, **settings: Any) -> SelectedTrainer:
    trainer, more = KINDS[kind]
    return trained(trainer, rows_of(trainer), folder, own=more | GROUPS | (own or {}), **(SGD | settings))


@pytest.mark.invariant("Groups of a prompt's rows change neither a step's loss nor its gradient.")
@pytest.mark.parametrize("kind", ["improve", "forget", "likelihood"])
def test_a_step_of_groups_is_the_step_of_its_rows(kind: str, tmp_path: Path) -> None:
    """Without an order of its own: all rows are in one step."""
    whole = {"per_device_train_batch_size": 15, "gradient_accumulation_steps": 1, "num_train_epochs": 6}
    together = run(kind, tmp_path, **whole)
    single = run(kind, tmp_path, own={"group": "none"}, **whole)
    assert_same_run(together, single, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_micro_batches_nor_budgets_change_a_step_of_groups(kind: str, tmp_path: Path) -> None:
    whole = run(kind, tmp_path, per_device_train_batch_size=6, gradient_accumulation_steps=1)
    cut = run(kind, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    assert_same_run(cut, whole, **TOLERANCE)
    own, size = {"max_tokens_per_batch": 40}, {"per_device_train_batch_size": 6}
    assert_same_run(run(kind, tmp_path, own=own, gradient_accumulation_steps=1, **size), whole, **TOLERANCE)


def test_a_model_that_cannot_share_prompts_takes_the_same_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = run("forget", tmp_path)
    assert shared.data_collator.shared_prefix
    policy = model(sliding_window=64)
    policy.config.sliding_window = 64
    apart = trained(ForgetTrainer, rows_of(ForgetTrainer), tmp_path, policy=policy, own=GROUPS, **SGD)
    assert not apart.data_collator.shared_prefix
    assert "takes no shared prefix" in capsys.readouterr().err
    assert_same_run(apart, shared, **TOLERANCE)


def test_a_precomputed_reference_is_the_swapped_one_in_groups(tmp_path: Path) -> None:
    swapped = run("improve", tmp_path / "swapped")
    computed = run("improve", tmp_path / "computed", own={"reference": "precomputed"})
    assert_same_run(computed, swapped, **TOLERANCE)


def test_a_precomputed_reference_reads_a_prompt_and_an_answer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(policy: Any, batch: Batch) -> torch.Tensor:
        read.append(int(batch["attention_mask"].sum()))
        return per_token_logps(policy, batch)

    monkeypatch.setattr(reference, "per_token_logps", counted)
    policy, rows = model(), pairs_of_prompts()
    args = arguments(tmp_path, **SGD | {"per_device_train_batch_size": len(rows)})
    own = GROUPS | {"reference": "precomputed"}
    trainer = ImproveTrainer(policy, args, rows, TOKENIZER, mask=every_third(policy), **own)
    trainer.precompute_reference()
    prompts = {tuple(row["prompt_ids"]) for row in trainer.train_dataset}
    answers = {
        (tuple(row["prompt_ids"]), tuple(row[side]))
        for row in trainer.train_dataset
        for side in ("chosen_ids", "rejected_ids")
    }
    assert len(prompts) < len(rows) and len(answers) < 2 * len(rows)
    assert sum(read) == sum(map(len, prompts)) + sum(len(answer) for _, answer in answers)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    def improver(folder: Path, *, stop: int | None = None) -> ImproveTrainer:
        policy = model()
        stops = [] if stop is None else [Stop(stop)]
        saving = SGD | SAVING | {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
        return ImproveTrainer(
            policy,
            arguments(folder, **saving),
            pairs_of_prompts(),
            TOKENIZER,
            mask=every_third(policy),
            callbacks=stops,
            **GROUPS,
        )

    whole = improver(tmp_path / "whole")
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(improver(tmp_path / "stopped", stop=7))  # in the middle of the second epoch
    resumed = improver(tmp_path / "stopped")
    train(resumed)
    for name, param in whole.model.named_parameters():
        assert torch.equal(param, dict(resumed.model.named_parameters())[name]), name


def test_evaluation_in_groups_is_that_of_single_rows(tmp_path: Path) -> None:
    trainer = run("improve", tmp_path, own={"eval_dataset": pairs_of_prompts()})
    found = trainer.evaluate()
    trainer.group = "none"
    expected = trainer.evaluate(pairs_of_prompts())
    for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen", "eval_entropy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_an_unknown_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^group: 'prompts' is unknown: give 'none' or 'prompt'"):
        trained(SftTrainer, wrongs(), tmp_path, own={"group": "prompts"})


def test_labelled_rows_of_one_prompt_are_compared_with_another_prompts(tmp_path: Path) -> None:
    """KTO's reference point: no completion is read after its own prompt."""
    rows = [row | {"prompt": feedback()[number // 4]["prompt"]} for number, row in enumerate(feedback())]
    own = {"loss": "kto"} | GROUPS
    trainer = trained(FeedbackTrainer, rows, tmp_path, own=own, **(SGD | {"num_train_epochs": 1}))
    seen: list[Any] = []
    collate = trainer.data_collator

    def noted(batch: Any) -> Any:
        seen.extend(batch)
        return collate(batch)

    step = trainer.train_dataset[:8]
    prompts = {tuple(row["completion_ids"]): row["prompt_ids"] for row in step}
    trainer.data_collator = type(
        "Noted", (), {"__call__": lambda _, batch: noted(batch), "num_tokens": collate.num_tokens}
    )()
    trainer._kl_of(step)
    assert len(seen) == len(step)
    assert all(prompts[tuple(row["completion_ids"])] != row["prompt_ids"] for row in seen)


@pytest.mark.parametrize("budget", [None, 60])
def test_a_search_for_weights_sums_the_same_gradient_in_groups(budget: int | None, tmp_path: Path) -> None:
    rows, _ = counted_pairs(TOKENIZER, pairs_of_prompts(), max_length=64)

    def gradients(group: Group) -> dict[str, torch.Tensor]:
        policy = model()
        sums = {name: torch.zeros(param.numel()) for name, param in policy.named_parameters()}
        passes = DpoPasses(
            policy,
            rows,
            arguments(tmp_path),
            beta=0.1,
            pad_id=TOKENIZER.pad_token_id,
            max_tokens_per_batch=budget,
            group=group,
        )
        passes.take_start_gradients(lambda name, _, gradient: sums[name].add_(gradient.flatten()))
        return sums

    together, single = gradients("prompt"), gradients("none")
    for name, gradient in together.items():
        assert gradient.any()
        torch.testing.assert_close(gradient, single[name], rtol=0, atol=1e-5)


def test_the_key_changes_no_recipe_that_leaves_it_at_its_default() -> None:
    for block in (Forget, Improve, Locate):
        assert "group" not in block().model_dump()
        assert block(group="prompt").model_dump()["group"] == "prompt"
        assert block(**block(group="prompt").model_dump()) == block(group="prompt")


def steps_of(sizes: list[int], *, rows_a_step: int, seed: int | None, epoch: int = 0) -> list[list[int]]:
    """The prompts of each step's rows."""
    prompts = [prompt for prompt, size in enumerate(sizes) for _ in range(size)]
    mixed = random.Random(1).sample(range(len(prompts)), len(prompts))
    rows = grouped({"prompt_ids": [prompts[place]]} for place in mixed)
    rows = [row | {"number": number} for number, row in enumerate(rows)]
    sampler = GroupSampler(rows, rows_a_step=rows_a_step, seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(rows))) and len(sampler) == len(rows)
    found = [rows[number]["prompt_ids"][0] for number in order]
    return [found[start : start + rows_a_step] for start in range(0, len(found), rows_a_step)]


def num_reads(steps: list[list[int]]) -> int:
    """The times that a step reads a prompt."""
    return sum(len(set(step)) for step in steps)


def test_steps_are_full_of_whole_prompts() -> None:
    sizes = [5, 3] * 20
    for epoch in range(3):
        steps = steps_of(sizes, rows_a_step=8, seed=0, epoch=epoch)
        assert [len(step) for step in steps] == [8] * 20
        assert num_reads(steps) <= len(sizes) + 2, "almost no prompt is read in two steps"
    ones = steps_of([1] * 13, rows_a_step=4, seed=0)
    assert [len(step) for step in ones] == [4, 4, 4, 1]
    large = steps_of([9, 2, 30], rows_a_step=4, seed=0)
    assert [len(step) for step in large] == [4] * 10 + [1]
    assert num_reads(large) <= 14


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    sizes = [1, 2, 3, 4, 5] * 4
    first, again, later, other = (
        steps_of(sizes, rows_a_step=6, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again and first != later and first != other
    whole = steps_of([2, 2, 2], rows_a_step=2, seed=None)
    assert whole == steps_of([2, 2, 2], rows_a_step=2, seed=None, epoch=1)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("budget", [1, 20, 50, 1000])
def test_a_budget_bounds_micro_batches_and_splits_groups(budget: int, shared: bool) -> None:
    rows = grouped(
        {
            "prompt_ids": [prompt] * (3 + prompt),
            "chosen_ids": [number % 2] * 5,
            "rejected_ids": [9] * (1 + number),
        }
        for prompt in range(4)
        for number in range(1 + 2 * prompt)
    )
    rows = [row | {"number": number} for number, row in enumerate(rows)]
    collate = PairCollator(0, shared_prefix=shared)
    batches = micro_batches(rows, collate.num_tokens, max_rows=1, max_tokens=budget)
    assert sorted(row["number"] for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        assert collate(batch)["input_ids"].numel() <= budget or len(batch) == 1
    if budget == 1000:
        assert len(batches) == 1


def test_without_a_budget_a_micro_batch_has_the_tokens_of_as_many_rows() -> None:
    rows = grouped(
        {"prompt_ids": [number // 6] * 10, "completion_ids": [number] * 10} for number in range(24)
    )
    collate = CompletionCollator(0, shared_prefix=True)
    batches = micro_batches(rows, collate.num_tokens, max_rows=8, max_tokens=None)
    assert all(collate(batch)["input_ids"].numel() <= 8 * 20 for batch in batches)
    assert max(map(len, batches)) > 8
