"""A trainer's step: the losses, the filter, the optimizer that it drives and the report."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, TrainerCallback

from allo.training.run import state_bytes
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.weights.param_mask import ParamMask
from tiny import (
    NUM_PAIRS,
    TOKENIZER,
    arguments,
    every_third,
    full_mask,
    logged,
    model,
    pairs,
    trained,
    weights,
    wrongs,
)

FP32 = 1e-5
WHOLE_EPOCH = {"per_device_train_batch_size": NUM_PAIRS, "gradient_accumulation_steps": 1}


def dense_logps(policy: PreTrainedModel, row: dict[str, Any], completion: str) -> Tensor:
    """Log-prob of each completion token, from the model's own logits, one row at a time."""
    prompt, answer = row["prompt_ids"], row[completion]
    logits = policy(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)


# The first step: policy and reference are equal.


def test_improving_begins_at_log_2_with_every_token_kept(tmp_path: Path) -> None:
    trainer = trained(ImproveTrainer, pairs(), tmp_path, own={"keep": 0.1})
    assert logged(trainer)[0] == pytest.approx(math.log(2), abs=1e-7)
    assert logged(trainer, "rewards/margins")[0] == 0
    assert logged(trainer, "improve/kept_tokens")[0] == 1
    assert logged(trainer, "improve/kept_tokens")[-1] < 0.5


def test_forgetting_begins_at_log_2_a_weighted_token(tmp_path: Path) -> None:
    rows = wrongs()
    trainer = trained(ForgetTrainer, rows, tmp_path, **WHOLE_EPOCH)
    assert logged(trainer)[0] == pytest.approx(math.log(2), abs=1e-7)
    flat = [weight for row in rows for weight in row["token_weights"]]
    assert logged(trainer, "forget/kept_tokens")[0] == pytest.approx(sum(flat) / len(flat))


def test_weights_multiply_the_loss_and_their_number_divides_it(tmp_path: Path) -> None:
    rows = [row | {"token_weights": [0.25 * weight for weight in row["token_weights"]]} for row in wrongs()]
    assert logged(trained(ForgetTrainer, rows, tmp_path))[0] == pytest.approx(0.25 * math.log(2), abs=1e-7)


# Learning.


def test_forgetting_lowers_the_weighted_tokens_alone(tmp_path: Path) -> None:
    trainer = trained(ForgetTrainer, wrongs(), tmp_path, num_train_epochs=4)
    batch = trainer.data_collator(trainer.train_dataset)
    with torch.no_grad():
        logratios, _ = trainer.logratios(batch)
    weighted = batch["token_weights"] != 0
    assert logratios[weighted].mean() < -1
    assert logratios[weighted].mean() < logratios[batch["completion_mask"] & ~weighted].mean() - 0.5
    assert logged(trainer)[-1] < logged(trainer)[0]


def test_forgetting_without_weights_lowers_every_completion(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in wrongs()]
    trainer = trained(ForgetTrainer, rows, tmp_path, num_train_epochs=4)
    with torch.no_grad():
        logratios, _ = trainer.logratios(trainer.data_collator(trainer.train_dataset))
    assert (logratios.sum(-1) < 0).all()
    assert logged(trainer, "forget/kept_tokens")[0] == 1


def test_improving_raises_the_margins_and_fine_tuning_the_likelihood(tmp_path: Path) -> None:
    improved = trained(ImproveTrainer, pairs(), tmp_path, num_train_epochs=4)
    assert logged(improved, "rewards/margins")[-1] > 0.2
    assert logged(improved, "rewards/accuracies")[-1] == 1
    tuned = trained(SftTrainer, wrongs(), tmp_path, num_train_epochs=4)
    assert logged(tuned)[-1] < logged(tuned)[0] - 0.5


def test_the_kept_share_is_of_completion_tokens_alone(tmp_path: Path) -> None:
    rows = [row | {"prompt": 5 * row["prompt"]} for row in pairs()]  # ten prompt tokens a completion token
    trainer = trained(ImproveTrainer, rows, tmp_path, own={"keep": 0.5}, **WHOLE_EPOCH)
    lengths = [len(row["rejected_ids"]) for row in trainer.train_dataset]
    expected = sum(math.ceil(length / 2) for length in lengths) / sum(lengths)
    assert logged(trainer, "improve/kept_tokens") == [1, pytest.approx(expected)]


def test_the_improving_loss_is_its_formula(tmp_path: Path) -> None:
    trainer = trained(
        ImproveTrainer,
        pairs(),
        tmp_path,
        own={"keep": 0.3, "beta": 0.2, "loss_settings": {"label_smoothing": 0.1}},
    )
    policy, reference, expected = trainer.model, model(), []
    with torch.no_grad():
        for row in trainer.train_dataset:
            chosen, rejected = (
                dense_logps(policy, row, side) - dense_logps(reference, row, side)
                for side in ("chosen_ids", "rejected_ids")
            )
            kept = rejected.sort().values[: math.ceil(0.3 * len(rejected))]
            margin = 0.2 * (chosen.sum() - kept.sum())
            expected.append(-0.9 * logsigmoid(margin) - 0.1 * logsigmoid(-margin))
        loss = trainer.loss(trainer.data_collator(trainer.train_dataset), denominator=NUM_PAIRS)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=FP32)


# The optimizer.


class Watch(TrainerCallback):
    """The optimizer's learning rates at each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_step_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_the_schedule_reaches_every_group_of_the_flat_vector(tmp_path: Path) -> None:
    watch = Watch()
    settings = {"learning_rate": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": 0.25}
    trainer = trained(ImproveTrainer, pairs(), tmp_path, own={"callbacks": [watch]}, **settings)
    warmup = [0, 0.5]  # a quarter of eight steps
    decay = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert watch.rates == [[pytest.approx(0.01 * share)] * 2 for share in warmup + decay]
    assert logged(trainer, "learning_rate") == [rates[0] for rates in watch.rates]


def test_weight_decay_takes_selected_entries_of_matrices_alone(tmp_path: Path) -> None:
    policy = model()
    before, mask = weights(policy), every_third(policy)
    settings = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.5, "max_grad_norm": 1e-12}
    trained(
        ForgetTrainer,
        wrongs(),
        tmp_path,
        policy=policy,
        mask=mask,
        lr_scheduler_type="constant",
        **settings,
    )
    for name, after in weights(policy).items():
        expected = before[name].clone().reshape(-1)
        if before[name].ndim == 2:
            expected[mask.indices[name]] *= (1 - 0.1 * 0.5) ** 8
        unselected = torch.ones_like(expected, dtype=torch.bool)
        unselected[mask.indices.get(name, torch.tensor([], dtype=torch.int32))] = False
        torch.testing.assert_close(after.reshape(-1), expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(after.reshape(-1)[unselected], before[name].reshape(-1)[unselected]), name


def test_the_logged_norm_is_the_dense_gradients_on_the_selected_entries(tmp_path: Path) -> None:
    policy, dense = model(), model()
    mask = every_third(policy)
    trainer = ImproveTrainer(policy, arguments(tmp_path, **WHOLE_EPOCH), pairs(), TOKENIZER, mask=mask)
    chosen, rejected = (
        torch.stack([dense_logps(dense, row, side).sum() for row in trainer.train_dataset])
        for side in ("chosen_ids", "rejected_ids")
    )
    margins = 0.1 * ((chosen - chosen.detach()) - (rejected - rejected.detach()))
    (-logsigmoid(margins)).mean().backward()
    selected = [
        param.grad.reshape(-1)[mask.indices[name]]
        for name, param in dense.named_parameters()
        if name in mask.indices
    ]
    trainer.train()
    assert logged(trainer, "grad_norm")[0] == pytest.approx(torch.cat(selected).norm().item(), rel=FP32)


def test_clipping_scales_the_whole_flat_gradient(tmp_path: Path) -> None:
    start = weights(model())
    steps = []
    for bound in (1e-3, 2e-3):
        settings = {"optim": "sgd", "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": bound}
        trainer = trained(ImproveTrainer, pairs(), tmp_path, lr_scheduler_type="constant", **settings)
        assert logged(trainer, "grad_norm")[0] > 0.1
        moved = torch.cat(
            [(after - start[name]).reshape(-1) for name, after in weights(trainer.model).items()]
        )
        assert moved.norm().item() == pytest.approx(bound, rel=1e-3)
        steps.append(moved)
    torch.testing.assert_close(2 * steps[0], steps[1], rtol=1e-2, atol=1e-7)


def test_a_bf16_model_trains_fp32_masters(tmp_path: Path) -> None:
    policy = model(torch.bfloat16)
    trainer = trained(ImproveTrainer, pairs(), tmp_path, policy=policy, learning_rate=1e-5)
    assert {param.dtype for param in policy.parameters()} == {torch.bfloat16}
    state = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
    assert {value.dtype for value in state} == {torch.float32}
    start = trainer.selected.slot("ref")
    for name, master in trainer.selected.masters().items():
        assert (master - start[name].float()).abs().max() > 1e-5, name
    k = trainer.selected.num_selected
    values = k * (4 + 4 + 2 + 8) + 4 * len(trainer.optimizer.param_groups)
    assert values < state_bytes(trainer) <= values + 2 * k + 8 * len(start)  # and where they lie


# Reports.


class Report(TrainerCallback):
    """Stands for a `report_to` integration: it hears what is logged."""

    def __init__(self) -> None:
        self.heard: list[dict[str, float]] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.heard.append(dict(logs))


@pytest.mark.parametrize(
    ("kind", "rows", "names"),
    [
        (ForgetTrainer, wrongs, {"rewards/rejected", "logps/rejected", "forget/kept_tokens"}),
        (
            ImproveTrainer,
            pairs,
            {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
            | {"logps/chosen", "logps/rejected", "improve/kept_tokens"},
        ),
    ],
)
def test_integrations_hear_the_metrics(
    kind: type[SelectedTrainer], rows: Callable[[], Any], names: set[str], tmp_path: Path
) -> None:
    report = Report()
    trainer = trained(kind, rows(), tmp_path, own={"callbacks": [report]}, logging_steps=4)
    assert len([row for row in report.heard if "loss" in row]) == 2
    for row in report.heard[:2]:
        assert names | {"mask/density", "loss", "grad_norm", "learning_rate", "epoch"} <= row.keys()
        assert row["mask/density"] == every_third(trainer.model).density


@pytest.mark.parametrize("batch", [16, 3])  # a batch of all rows; five of three and one of one
def test_evaluation_is_the_loss_over_its_own_rows(batch: int, tmp_path: Path) -> None:
    trainer = trained(
        ForgetTrainer,
        wrongs(),
        tmp_path,
        own={"eval_dataset": Dataset.from_list(wrongs()[4:])},
        logging_steps=8,
        eval_strategy="steps",
        eval_steps=3,
        per_device_eval_batch_size=batch,
    )
    rows, reference = trainer.train_dataset[4:], model()
    with torch.no_grad():
        ratios = [
            dense_logps(trainer.model, r, "completion_ids") - dense_logps(reference, r, "completion_ids")
            for r in rows
        ]
    losses = -logsigmoid(-0.1 * torch.cat(ratios))
    flat = torch.tensor([weight for row in rows for weight in row["token_weights"]])
    result = trainer.evaluate()
    assert result["eval_loss"] == pytest.approx(((losses * flat).sum() / flat.sum()).item(), abs=FP32)
    rewards = torch.stack([0.1 * ratio.sum() for ratio in ratios])
    assert result["eval_rewards/rejected"] == pytest.approx(rewards.mean().item(), abs=FP32)
    assert trainer.evaluate(wrongs()[4:], metric_key_prefix="again")["again_loss"] == result["eval_loss"]
    # Evaluating in between leaves the training steps' metrics alone.
    alone = trained(ForgetTrainer, wrongs(), tmp_path, logging_steps=8)
    for name in ("loss", "rewards/rejected", "forget/kept_tokens"):
        assert logged(trainer, name) == logged(alone, name)


# Memory.


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in entries."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in torch.utils._pytree.tree_leaves(result):
            if isinstance(made, Tensor):
                self.numel = max(self.numel, made.numel())
        return result


@pytest.mark.invariant("No tensor of batch x length x vocabulary is made.")
def test_a_step_makes_no_tensor_of_batch_length_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, chunk = 5000, 8
    monkeypatch.setattr("allo.losses.logps._CHUNK_BYTES", 4 * vocabulary * chunk)
    policy = model(vocab_size=vocabulary, tie_word_embeddings=False, hidden_size=8)
    mask = ParamMask(
        {"model.norm.weight": torch.arange(4, dtype=torch.int32)},
        shapes={name: tuple(param.shape) for name, param in policy.named_parameters()},
    )
    trainer = ImproveTrainer(policy, arguments(tmp_path), pairs(), TOKENIZER, mask=mask)
    batch = trainer.data_collator(trainer.train_dataset)
    with Largest() as largest:
        trainer.loss(batch, denominator=1.0).backward()
    rows, length = batch["input_ids"].shape
    assert (
        largest.numel <= max(chunk, policy.config.hidden_size) * vocabulary < rows * length * vocabulary / 10
    )


def test_layers_below_the_lowest_selected_weight_cost_no_backward_pass(tmp_path: Path) -> None:
    policy = model()
    mask = full_mask(policy)
    layers = len(policy.model.layers)
    top = {name: where for name, where in mask.indices.items() if f"layers.{layers - 1}." in name}
    trainer = ImproveTrainer(
        policy, arguments(tmp_path), pairs(), TOKENIZER, mask=ParamMask(top, shapes=mask.shapes)
    )
    needs: list[bool] = []
    for layer in policy.model.layers:
        layer.register_forward_hook(lambda _, __, output: needs.append(output.requires_grad))
    batch = trainer.data_collator(trainer.train_dataset[:2])
    batch["ref_logps"] = torch.zeros_like(batch["targets"], dtype=torch.float32)
    trainer.loss(batch, denominator=2.0).backward()
    assert needs == [False] * (layers - 1) + [True]
    assert all(gradient.any() for gradient in trainer.selected.gradients().values())
