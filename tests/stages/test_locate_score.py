"""Locating weights and scoring tokens, held against dense models: no selected weights, no chunks, no batches."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.models.start import save_whole, write_start
from allo.recipe.criteria import CRITERIA
from allo.stages import locate
from allo.training.result import located_mask
from allo.weights.importance_map import ImportanceMap
from allo.weights.selected import SelectedWeights
from allo.weights.selection import num_to_select
from locate_setup import BETA, DENSITY, FP32, FUSED, TRAINING, dense_logps, recipe, with_pairs
from tiny import NUM_PAIRS, TOKENIZER, model, pairs, weights

# Least share of the 10% of the weights that is the same after three additions in bf16.
SAME_IN_BF16 = 0.97
MAX_GRAD_NORM = 1.0  # the default


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return with_pairs(tmp_path)


def dense_losses(policy: PreTrainedModel, reference: PreTrainedModel) -> list[Tensor]:
    """DPO of each pair, with the model's own autograd."""
    losses = []
    for pair in pairs():
        with torch.no_grad():
            chosen, rejected = (
                dense_logps(reference, pair["prompt"], pair[s]).sum() for s in ("chosen", "rejected")
            )
        chosen = dense_logps(policy, pair["prompt"], pair["chosen"]).sum() - chosen
        rejected = dense_logps(policy, pair["prompt"], pair["rejected"]).sum() - rejected
        losses.append(-logsigmoid(BETA * (chosen - rejected)))
    return losses


def gradients(losses: list[Tensor], policy: PreTrainedModel) -> dict[str, Tensor]:
    policy.zero_grad()
    torch.stack(losses).sum().backward()
    return {name: param.grad.clone() for name, param in policy.named_parameters()}


def dense_changes() -> dict[str, Tensor]:
    """|theta' - theta| of a dense DPO run with plain torch."""
    policy, reference = model(), model()
    optimizer = torch.optim.SGD(policy.parameters(), lr=TRAINING["learning_rate"])
    for _ in range(TRAINING["num_train_epochs"]):
        optimizer.zero_grad()
        torch.stack(dense_losses(policy, reference)).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()
    start = weights(reference)
    return {name: (param - start[name]).abs() for name, param in weights(policy).items()}


def assert_top(found: ImportanceMap, dense: dict[str, Tensor], *, largest: bool = True) -> None:
    """`found` keeps the k extreme entries of the dense scores; of near ties either."""
    flat = torch.cat([scores.reshape(-1) for scores in dense.values()])
    k = num_to_select(DENSITY, flat.numel())
    kept = torch.cat([dense[name].reshape(-1)[indices.long()] for name, indices in found.indices.items()])
    assert kept.numel() == k
    expected = flat.topk(k, largest=largest).values
    torch.testing.assert_close(kept.sort().values, expected.sort().values, **FP32)


def located(run: RunFolder, criterion: str, **own: Any) -> ImportanceMap:
    locate.run(recipe(criterion, **own), run)
    return ImportanceMap.load(run.importance)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_keeps_exactly_k_weights_at_any_density(criterion: str, run: RunFolder) -> None:
    found = located(run, criterion)
    num_weights = sum(param.numel() for param in model().parameters())
    assert sum(map(len, found.indices.values())) == num_to_select(DENSITY, num_weights)
    assert found.mask_at(0.03).num_selected == num_to_select(0.03, num_weights)
    assert found.metadata["criterion"] == criterion
    assert not list(run.warmup.glob("checkpoint-*"))


def test_last_takes_the_last_layer_first_and_within_a_layer_what_the_hash_says(run: RunFolder) -> None:
    sizes = {name: param.numel() for name, param in model().named_parameters()}
    layers = [sum(size for name, size in sizes.items() if f".layers.{n}." in name) for n in (0, 1)]
    locate.run(recipe("last", improve={"density": 1.0}), run)
    located = ImportanceMap.load(run.importance)
    total = sum(sizes.values())
    half = located.mask_at(0.5 * layers[1] / total)
    assert all(".layers.1." in name for name in half.indices) and len(half.indices) > 5
    assert half.indices["model.layers.1.mlp.up_proj.weight"].diff().max() > 1, "spread, not a prefix"
    beyond = located.mask_at((layers[1] + layers[0] + 10) / total)
    per_tensor = {name: len(indices) for name, indices in beyond.indices.items()}
    assert all(per_tensor[name] == size for name, size in sizes.items() if ".layers." in name)


def test_warmup_is_the_change_of_a_dense_run(run: RunFolder) -> None:
    dense = dense_changes()
    found = located(run, "warmup")
    assert_top(found, dense)
    for name, scores in found.scores.items():
        torch.testing.assert_close(scores, dense[name].reshape(-1)[found.indices[name].long()], **FP32)
    assert_top(located(run, "bottom"), dense, largest=False)


def test_gradient_and_taylor_are_those_of_the_dense_loss(run: RunFolder) -> None:
    policy = model()
    dense = gradients(dense_losses(policy, model()), policy)
    found = located(run, "gradient")
    assert_top(found, {name: gradient.abs() for name, gradient in dense.items()})
    for name, scores in found.scores.items():
        expected = dense[name].abs().reshape(-1)[found.indices[name].long()]
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    theta = weights(policy)
    assert_top(located(run, "taylor"), {name: (theta[name] * dense[name]).abs() for name in dense})


def test_fisher_sums_the_squares_of_each_pair_whatever_the_batch(run: RunFolder) -> None:
    policy = model()
    squares = {name: torch.zeros_like(param) for name, param in policy.named_parameters()}
    for loss in dense_losses(policy, model()):
        for name, gradient in gradients([loss], policy).items():
            squares[name] += gradient.square()
    assert TRAINING["per_device_train_batch_size"] > 1
    assert_top(located(run, "fisher"), squares)


def test_sums_in_bf16_find_nearly_the_same_weights(run: RunFolder) -> None:
    for criterion in ("gradient", "taylor"):
        exact = located(run, criterion).mask_at(DENSITY)
        block = {"criterion": criterion, "accumulate": "bfloat16", "beta": BETA, "training": TRAINING}
        assert located(run, criterion, locate=block).mask_at(DENSITY).overlap(exact) >= SAME_IN_BF16


def dense_fused_changes() -> dict[str, Tensor]:
    """|theta' - theta| under the fused warm-up's rule, with all gradients of a step at once."""
    policy, reference = model(), model()
    second: dict[str, tuple[Tensor, Tensor]] = {}
    for step in range(1, FUSED["num_train_epochs"] + 1):
        decay = 1 - step**-0.8
        for name, gradient in gradients(dense_losses(policy, reference), policy).items():
            mean = (gradient / NUM_PAIRS).reshape(len(gradient) if gradient.ndim > 1 else 1, -1)
            squares = mean.square()
            now = squares.mean(1, keepdim=True), squares.mean(0, keepdim=True)
            old = second.get(name, (torch.zeros_like(now[0]), torch.zeros_like(now[1])))
            rows, columns = (decay * a + (1 - decay) * b for a, b in zip(old, now, strict=True))
            second[name] = rows, columns
            normalised = mean / (rows * columns / rows.mean()).sqrt()
            update = torch.where(mean == 0, 0.0, normalised).clamp(-1, 1).reshape(gradient.shape)
            policy.get_parameter(name).data -= FUSED["learning_rate"] * update
    start = weights(reference)
    return {name: (param - start[name]).abs() for name, param in weights(policy).items()}


def test_the_fused_warmup_is_its_rule_against_the_starting_model(run: RunFolder) -> None:
    dense = dense_fused_changes()
    found = located(run, "warmup_fused")
    assert_top(found, dense)
    for name, scores in found.scores.items():
        torch.testing.assert_close(scores, dense[name].reshape(-1)[found.indices[name].long()], **FP32)


def test_the_low_memory_ways_tell_what_the_host_holds(run: RunFolder) -> None:
    num_weights = sum(param.numel() for param in model().parameters())
    block = {"criterion": "fisher", "accumulate": "bfloat16", "training": TRAINING}
    for criterion, own, num_bytes in (
        ("gradient", {}, 4),
        ("fisher", {"locate": block}, 2),
        ("warmup_fused", {}, 4 + 4),
    ):
        counts = locate.run(recipe(criterion, **own), run)
        assert counts["host_state_bytes"] == num_bytes * num_weights


@pytest.mark.parametrize("criterion", ["warmup", "bottom"])
def test_the_warmup_tells_the_bytes_of_its_training_state(criterion: str, run: RunFolder) -> None:
    num_weights = sum(param.numel() for param in model().parameters())
    training = TRAINING | {"optim": "adamw_torch"}
    counts = locate.run(recipe(criterion, locate={"criterion": criterion, "training": training}), run)
    # Master, gradient, two moments and the reference slot, all fp32; Adam also counts each parameter's steps.
    assert 0 <= counts["training_state_bytes"] - num_weights * 5 * 4 < 100


@pytest.mark.parametrize("criterion", ["warmup", "warmup_fused"])
def test_a_single_step_is_taken_at_its_full_rate_which_is_said(
    criterion: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warm-up of the learning rate would begin, and here end, at rate 0: chance would choose the weights."""
    plain = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2 * NUM_PAIRS,
        "gradient_accumulation_steps": 1,
    }
    found = {}
    for warmup_steps in (0, 1, 0.1):
        training = plain | {"learning_rate": 0.01, "warmup_steps": warmup_steps}
        locate.run(recipe(locate={"criterion": criterion, "training": training}), run)
        found[warmup_steps] = ImportanceMap.load(run.importance)
        assert ("it is taken without" in capsys.readouterr().err) is (warmup_steps > 0)
        shutil.rmtree(run.warmup)
    for other in (1, 0.1):
        for name, scores in found[0].scores.items():
            assert torch.equal(found[other].scores[name], scores)
    assert sum(int((one > 0).sum()) for one in found[0].scores.values()) > 0


def test_weights_that_all_score_nothing_are_refused() -> None:
    zeros = {"a": torch.zeros(50), "b": torch.zeros(50)}
    shapes = dict.fromkeys(zeros, (50,))
    with pytest.raises(UserError, match="every weight scores 0"):
        ImportanceMap.top(lambda: iter(zeros.items()), density=0.1, shapes=shapes, metadata={})
    zeros["b"][3] = 1.0
    kept = ImportanceMap.top(lambda: iter(zeros.items()), density=0.1, shapes=shapes, metadata={})
    assert 3 in kept.indices["b"].tolist()


def test_an_importance_located_on_another_model_is_refused(run: RunFolder) -> None:
    located(run, "magnitude")
    policy = model()
    mask = located_mask(recipe(), run, policy, density=DENSITY)
    assert mask.num_selected == num_to_select(DENSITY, mask.num_weights)
    with torch.no_grad():
        next(policy.parameters())[0, 0] += 1
    save_whole(policy, TOKENIZER, run.start / "model")
    write_start(run, run.start / "model")
    with pytest.raises(UserError, match=r"04-importance.*located on a model other than.*`allo locate`"):
        located_mask(recipe(), run, policy, density=DENSITY)


@pytest.mark.parametrize("granularity", ["row", "column"])
def test_a_mask_of_whole_lines_trains_the_layers_by_lines(run: RunFolder, granularity: str) -> None:
    """From the stage to the model: whole lines, and every Linear that has some computes only them."""
    own = {"locate": {"criterion": "magnitude", "granularity": granularity}}
    located(run, "magnitude", **own)
    policy = model()
    mask = located_mask(recipe("magnitude", **own), run, policy, density=DENSITY)
    lines = {"row": 1, "column": 0}[granularity]
    for name, indices in mask.indices.items():
        shape = mask.shapes[name]
        grid = (
            torch.zeros(math.prod(shape), dtype=torch.bool).index_fill_(0, indices.long(), True).view(shape)
        )
        assert len(shape) == 1 or torch.equal(grid.all(lines), grid.any(lines)), name
    plain, by_lines = model(), SelectedWeights(policy, mask)
    inputs = torch.arange(1, 9).view(2, 4)
    for each in (plain, policy):
        each(input_ids=inputs, labels=inputs).loss.backward()
    dense = dict(plain.named_parameters())
    for name, gradient in by_lines.gradients().items():
        expected = dense[name].grad.view(-1)[mask.indices[name].long()]
        torch.testing.assert_close(gradient, expected, **FP32)
    for name, part in policy.named_modules():
        if type(part) is torch.nn.Linear and name != "lm_head":  # which is tied to the embedding
            some = 0 < len(mask.indices.get(f"{name}.weight", ())) < part.weight.numel()
            assert ("forward" in vars(part)) == some, name
    assert any("forward" in vars(part) for part in policy.modules())


def test_magnitude_and_random_look_at_no_data(run: RunFolder) -> None:
    run.pairs.unlink()
    assert_top(located(run, "magnitude"), {name: param.abs() for name, param in weights(model()).items()})
    one, other, again = (located(run, "random", seed=seed).mask_at(DENSITY) for seed in (1, 2, 1))
    assert one.overlap(again) == 1
    assert one.overlap(other) < 2 * DENSITY


def test_a_bf16_start_warms_up_in_fp32(run: RunFolder) -> None:
    save_whole(model(torch.bfloat16), TOKENIZER, run.start / "model")
    write_start(run, run.start / "model")
    training = TRAINING | {"learning_rate": 1e-7, "optim": "adamw_torch"}  # far below the steps of bf16
    found = located(
        run,
        "warmup",
        dtype="bfloat16",
        locate={"criterion": "warmup", "training": training},
    )
    assert all((scores > 1e-8).all() for scores in found.scores.values())
