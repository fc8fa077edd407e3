"""Locating weights and scoring tokens, held against dense models: no selected weights, no chunks, no batches."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM, PreTrainedModel

from allo.artifacts import RunFolder, write_jsonl
from allo.core.importance_map import ImportanceMap
from allo.core.selected import SelectedWeights
from allo.core.selection import num_to_select
from allo.core.token_credit import edit_scores, random_scores
from allo.errors import UserError
from allo.hf import scorers
from allo.hf.result import located_mask
from allo.hf.start import save_whole, write_start
from allo.recipe import Recipe
from allo.records import Pair, TokenScores, Wrong
from allo.stages import locate, score
from tiny import NUM_PAIRS, TOKENIZER, model, pairs, text, weights

DENSITY = 0.1
BETA = 0.2
FP32 = {"rtol": 1e-4, "atol": 1e-6}
# Of 10% of the weights, so many at least are the same after three additions in bf16.
SAME_IN_BF16 = 0.97
EOS = TOKENIZER.eos_token_id
# One step an epoch over all pairs, so that the order of the pairs is none of the matter.
TRAINING = {
    "learning_rate": 0.1,
    "optim": "sgd",
    "num_train_epochs": 3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
}
MAX_GRAD_NORM = 1.0  # the default
# As above in one micro-batch a step; the rule brings its own optimizer.
FUSED = {name: value for name, value in TRAINING.items() if name != "optim"} | {
    "learning_rate": 0.01,
    "per_device_train_batch_size": NUM_PAIRS,
    "gradient_accumulation_steps": 1,
}


def wrong_completions() -> list[Wrong]:
    """Every second one was cut off before its end; each has a solution, and most a right sample."""
    return [
        Wrong(
            id=f"p{row}/0",
            prompt_id=f"p{row}",
            prompt=pair["prompt"],
            completion=pair["rejected"],
            finished=row % 2 == 0,
            solution=pair["chosen"],
            right=[pair["chosen"], pair["rejected"] + text(row, 1)] if row % 3 else [],
        )
        for row, pair in enumerate(pairs())
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run's folder up to the pairs, with a tiny model to start from."""
    folder = RunFolder(tmp_path)
    folder.start.mkdir()
    save_whole(model(), TOKENIZER, folder.start / "model")
    write_start(folder, folder.start / "model")
    write_jsonl(folder.pairs, [Pair(prompt_id=str(row), **pair) for row, pair in enumerate(pairs())])
    write_jsonl(folder.wrong, wrong_completions())
    return folder


def recipe(criterion: str = "warmup", scorer: str = "uniform", **own: Any) -> Recipe:
    training = FUSED if criterion == "warmup_fused" else TRAINING
    fields: dict[str, Any] = {
        "name": "tiny",
        "model": "unused",
        "dtype": "float32",
        "device": "cpu",
        "max_length": 64,
        "data": {"pairs": "unused.jsonl"},
        "locate": {"criterion": criterion, "beta": BETA, "training": training},
        "score": {"scorer": scorer, "batch_size": 4, "weights": "soft"},
        "improve": {"density": DENSITY},
        "evaluate": {"sets": {"none": {"task": "planted_flaws"}}},
    }
    return Recipe.model_validate(fields | own)


def dense_logps(policy: PreTrainedModel, prompt: str, completion: str, *, finished: bool = True) -> Tensor:
    """Log-prob of each completion token from the model's own logits."""
    before = TOKENIZER(prompt).input_ids
    after = TOKENIZER(completion, add_special_tokens=False).input_ids + ([EOS] if finished else [])
    logps = policy(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    return logps[len(before) - 1 : -1].gather(1, torch.tensor(after).unsqueeze(1)).squeeze(1)


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


@pytest.mark.parametrize(
    "criterion",
    ["warmup", "warmup_fused", "gradient", "fisher", "taylor", "magnitude", "bottom", "last", "random"],
)
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


def test_an_importance_located_on_another_model_is_refused(run: RunFolder) -> None:
    located(run, "magnitude")
    policy = model()
    mask = located_mask(recipe(), run, policy, density=DENSITY)
    assert mask.num_selected == num_to_select(DENSITY, mask.num_weights)
    with torch.no_grad():
        next(policy.parameters())[0, 0] += 1
    save_whole(policy, TOKENIZER, run.start / "model")
    write_start(run, run.start / "model")
    with pytest.raises(UserError, match=r"04-importance.*located on another model.*`allo locate`"):
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


# Scores.


def scored(run: RunFolder, scorer: str, *, criterion: str = "warmup", **own: Any) -> dict[str, TokenScores]:
    if scorer == "implicit":
        locate.run(recipe(criterion, scorer), run)
    score.run(recipe(scorer=scorer, **own), run)
    rows = pq.read_table(run.token_scores, columns=["id", "token_ids", "scores", "weights"]).to_pylist()
    return {row["id"]: TokenScores(**row) for row in rows}


@pytest.mark.parametrize("scorer", ["implicit", "privileged", "confidence", "edit", "uniform", "random"])
def test_scores_align_with_the_completions_tokens(scorer: str, run: RunFolder) -> None:
    rows = scored(run, scorer)
    assert len(rows) == NUM_PAIRS
    for wrong in wrong_completions():
        row = rows[wrong.id]
        ids = TOKENIZER(wrong.completion, add_special_tokens=False).input_ids
        assert row.token_ids == ids + ([EOS] if wrong.finished else [])
        assert len(row.scores) == len(row.weights) == len(row.token_ids)
        assert all(0 <= value <= 1 for value in row.scores)
        assert row.weights == pytest.approx([1 - value for value in row.scores])


@pytest.mark.parametrize("criterion", ["warmup", "warmup_fused"])
def test_implicit_is_the_log_ratio_of_two_dense_models(criterion: str, run: RunFolder) -> None:
    rows = scored(run, "implicit", criterion=criterion)
    start, warm = (LlamaForCausalLM.from_pretrained(run.start / "model") for _ in range(2))
    warm.load_state_dict(load_file(run.warmup / "weights.safetensors"), strict=False)
    ratios = {}
    for wrong in wrong_completions():
        with torch.no_grad():
            after, before = (
                dense_logps(policy, wrong.prompt, wrong.completion, finished=wrong.finished)
                for policy in (warm, start)
            )
        ratios[wrong.id] = after - before
    scale = torch.cat(list(ratios.values())).square().mean().sqrt()
    assert scale > 0.1
    for name, ratio in ratios.items():
        torch.testing.assert_close(torch.tensor(rows[name].scores), (ratio / scale).sigmoid(), **FP32)


def test_an_interrupted_implicit_scorer_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, start = model(), weights(model())
    warmup = {name: tensor + 1 for name, tensor in start.items()}
    context = scorers.Context(policy, TOKENIZER, max_length=64, seed=0, weights={"warmup": dict(warmup)})

    def killed_in_the_warmup(*_: Any) -> list[list[float]]:
        if torch.equal(next(policy.parameters()), next(iter(warmup.values()))):
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(scorers, "_logps", killed_in_the_warmup)
    with pytest.raises(KeyboardInterrupt):
        scorers.implicit([], context)
    for name, tensor in weights(policy).items():
        assert torch.equal(tensor, start[name]), name
        assert torch.equal(context.weights["warmup"][name].reshape(tensor.shape), warmup[name]), name


@torch.no_grad()
def test_confidence_and_privileged_are_probabilities_without_and_with_the_solution(run: RunFolder) -> None:
    policy = model()
    # The longest row just fits; the solution must not be cut off its beginning for that.
    fits = max(len(TOKENIZER(w.prompt + w.completion).input_ids) for w in wrong_completions()) + 1
    confidence, privileged = (scored(run, name, max_length=fits) for name in ("confidence", "privileged"))
    for wrong in wrong_completions():
        shown = f"A correct solution to the problem below, to check your own against:\n{wrong.solution}\n\n"
        for rows, prompt in ((confidence, wrong.prompt), (privileged, shown + wrong.prompt)):
            expected = dense_logps(policy, prompt, wrong.completion, finished=wrong.finished).exp()
            torch.testing.assert_close(torch.tensor(rows[wrong.id].scores), expected, **FP32)


def test_privileged_without_a_solution_says_what_to_choose(run: RunFolder) -> None:
    first, *_ = wrong_completions()
    write_jsonl(run.wrong, [Wrong(**(vars(first) | {"solution": None, "right": []}))])
    with pytest.raises(UserError, match=r"prompt p0: scorer `privileged`.*Choose another score\.scorer"):
        scored(run, "privileged")


def test_edit_uniform_and_random_need_no_model(run: RunFolder) -> None:
    edit, uniform, random = (scored(run, name) for name in ("edit", "uniform", "random"))
    for wrong in wrong_completions():
        ids = uniform[wrong.id].token_ids
        rights = [
            [*TOKENIZER(right, add_special_tokens=False).input_ids, EOS]
            for right in (wrong.right or [wrong.solution])
        ]
        assert edit[wrong.id].scores == edit_scores(ids, rights)
        assert uniform[wrong.id].scores == [0.0] * len(ids)
        assert random[wrong.id].scores == pytest.approx(random_scores(wrong.id, len(ids), seed=0))
    assert {value for row in edit.values() for value in row.scores} == {0.0, 1.0}


@pytest.mark.parametrize("scorer", ["edit", "privileged"])
def test_a_scorer_that_is_shown_no_solution_scores_as_if_there_were_none(run: RunFolder, scorer: str) -> None:
    """`edit` looks at solutions where no sample is right; `privileged` needs one of either."""
    kept = [each for each in wrong_completions() if each.right or scorer == "edit"]

    def scores(*, known: str | None, shown: bool) -> dict[str, TokenScores]:
        write_jsonl(run.wrong, [replace(each, solution=known) for each in kept])
        block = {"scorer": scorer, "batch_size": 4, "weights": "soft", "solutions": shown}
        score.run(recipe(score=block), run)
        return {row["id"]: row["scores"] for row in pq.read_table(run.token_scores).to_pylist()}

    assert scores(known=text(1, 3), shown=False) == scores(known=None, shown=True)
    assert scores(known=text(1, 3), shown=False) != scores(known=text(1, 3), shown=True)


def test_nothing_wrong_leaves_a_table_of_no_rows(run: RunFolder) -> None:
    write_jsonl(run.wrong, [])
    assert scored(run, "confidence") == {}
    assert pq.read_schema(run.token_scores).names == ["id", "token_ids", "scores", "weights", "tokens"]


def test_scoring_goes_on_where_it_was_killed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(run, "confidence")
    unbroken = run.token_scores.read_bytes()
    run.token_scores.unlink()
    calls: list[int] = []
    original = scorers.per_token_logps

    def killed(policy: Any, batch: Any) -> Tensor:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(batch["input_ids"]))
        return original(policy, batch)

    monkeypatch.setattr(scorers, "per_token_logps", killed)
    with pytest.raises(KeyboardInterrupt):
        scored(run, "confidence")
    assert not run.token_scores.exists()
    monkeypatch.setattr(scorers, "per_token_logps", lambda *a: calls.append(0) or original(*a))
    assert scored(run, "confidence") == whole
    assert run.token_scores.read_bytes() == unbroken
    assert calls == [4, 4, 0, 0]  # of four batches two came before the kill, two after
    assert list(run.path.glob("05-*")) == [run.token_scores]
