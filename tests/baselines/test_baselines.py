"""Methods of TRL and PEFT as ordinary recipes: same tokens, same outputs, and what a recipe may ask of them."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_run
from allo.baselines import arguments
from allo.baselines.arguments import trl_arguments
from allo.delta import read_delta
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, read_json
from allo.files.records import Completion
from allo.models.load import load_model
from allo.models.rows import counted_pairs
from allo.models.tokenization import prompt_ids
from allo.pipeline import run_all
from allo.plan import plan
from allo.recipe import Recipe
from allo.stages import compared, improve, sft
from allo.stages.check import check
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import as_bits
from tiny import LABORATORY, TOKENIZER, pairs

for package in ("trl", "peft"):
    pytest.importorskip(package, reason="the baselines train through TRL and PEFT; install the extras")

from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402

from allo.baselines.adapters import AdapterTrainer, adapter_rank, lora, shira  # noqa: E402
from allo.baselines.on_policy import Grpo, Rloo, on_policy_trainer  # noqa: E402

pytestmark = [
    # TRL 1.16 reads a name that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT's SHiRA makes a sparse tensor without saying whether it wants it checked.
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]

ADAPTERS = {"lora": lora, "shira": shira}
ON_POLICY = {"rloo": Rloo, "grpo": Grpo}
ALONE = ("sft=null", "forget=null", "score=null", "locate=null")
STEPS = ("improve.training.logging_steps=1", "improve.training.warmup_steps=0")
MERGED = 1e-5  # logits of a merged adapter beside those of the layers that add it, fp32
STATE_SLACK = 1000  # bytes: a step counter for each trained tensor


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 problems up to its pairs."""
    out = tmp_path_factory.mktemp("sampled")
    run_all(asked(out, "lora"), until="pair")
    return out


def asked(out: Path, trainer: str, *more: str) -> Recipe:
    return tiny_run.tiny(out, *ALONE, *STEPS, "data.limit=8", f"improve.trainer={trainer}", *more)


def improved(sampled: Path, out: Path, trainer: str, *more: str) -> tuple[RunFolder, dict[str, Any]]:
    """The run of `sampled`, copied to `out` and improved, and the stage's counts."""
    shutil.copytree(sampled, out)
    recipe = asked(out, trainer, *more)
    run = RunFolder(recipe.run_folder)
    sft.run(recipe, run)  # the start in another dtype is another
    return run, improve.run(recipe, run)


def steps(run: RunFolder, name: str) -> list[float]:
    rows = map(json.loads, (run.improve / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows]


def laboratory() -> Any:
    return load_model(LABORATORY, dtype=torch.float32, device="cpu")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of the model that a stage was about to write."""
    weights: dict[str, Tensor] = {}
    write = compared.write_change

    def spy(model: Any, *args: Any, **settings: Any) -> dict[str, int]:
        weights.update({name: param.detach().clone() for name, param in model.named_parameters()})
        return write(model, *args, **settings)

    monkeypatch.setattr(compared, "write_change", spy)
    return weights


@pytest.mark.invariant("TRL and PEFT get our token ids, and the written model is the trained one.")
@pytest.mark.parametrize(
    ("trainer", "dtype"),
    [
        ("lora", "float32"),
        ("lora", "bfloat16"),
        ("shira", "bfloat16"),
        ("rloo", "float32"),
        ("grpo", "bfloat16"),
    ],
)
def test_the_written_model_is_the_trained_one_bit_for_bit(
    trainer: str, dtype: str, sampled: Path, tmp_path: Path, written: dict[str, Tensor]
) -> None:
    run, counts = improved(sampled, tmp_path / "run", trainer, f"dtype={dtype}")
    stored, start = Checkpoint.open(run.improve / "model"), laboratory()
    assert stored.stored.keys() == written.keys()
    for name, weight in written.items():
        assert torch.equal(as_bits(stored.read(name)), as_bits(weight)), name
    change = read_delta(run.improve / "delta.safetensors")
    before = {name: param.to(getattr(torch, dtype)) for name, param in start.named_parameters()}
    differing = sum(int((as_bits(before[name]) != as_bits(written[name])).sum()) for name in written)
    assert change.num_changed == counts["changed_weights"] == differing > 0
    assert {path.name for path in run.improve.iterdir()} == {"delta.safetensors", "metrics.jsonl", "model"}


@pytest.mark.parametrize("trainer", ADAPTERS)
def test_an_adapter_lowers_its_dpo_loss_from_log_2(trainer: str, sampled: Path, tmp_path: Path) -> None:
    more = ("improve.training.num_train_epochs=4", "improve.training.learning_rate=1e-3", "improve.beta=0.5")
    run, _ = improved(sampled, tmp_path / "run", trainer, *more)
    losses = steps(run, "loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # the reference is the start
    assert losses[-1] < 0.8 * losses[0]
    assert steps(run, "rewards/margins")[-1] > 0


@pytest.mark.parametrize("density", [0.02, 0.10, 0.25])
@pytest.mark.parametrize("trainer", ADAPTERS)
def test_the_rank_brings_the_trained_weights_nearest_to_the_density(
    trainer: str, density: float, tmp_path: Path
) -> None:
    num_weights = sum(param.numel() for param in laboratory().parameters())
    rank = adapter_rank(laboratory(), density=density)

    def num_trained(rank: int) -> int:
        recipe = tiny_run.tiny(tmp_path, *ALONE, f"improve.trainer={trainer}")
        args = trl_arguments(recipe, folder=tmp_path, device=torch.device("cpu"))
        adapter = ADAPTERS[trainer](rank=rank, seed=0)
        model = AdapterTrainer(laboratory(), args, pairs(), TOKENIZER, adapter).model
        return sum(param.numel() for param in model.parameters() if param.requires_grad)

    missed = {r: abs(num_trained(r) - density * num_weights) for r in (rank - 1, rank, rank + 1) if r > 0}
    assert min(missed, key=missed.__getitem__) == rank


@pytest.mark.parametrize(("trainer", "bytes_a_weight"), [("lora", 16), ("shira", 24)])
def test_an_adapters_rank_and_state_are_on_record(
    trainer: str, bytes_a_weight: int, sampled: Path, tmp_path: Path
) -> None:
    """fp32 weight, gradient and two moments; SHiRA's places are two 4-byte indices each."""
    _, found = improved(sampled, tmp_path / "run", trainer, "improve.adapter_rank=3")
    assert found["adapter_rank"] == 3
    state = found["training_state_bytes"] - bytes_a_weight * found["trained_weights"]
    assert 0 <= state < STATE_SLACK
    if trainer == "shira":
        assert found["changed_weights"] <= found["trained_weights"]


@pytest.mark.parametrize("trainer", ADAPTERS)
def test_merging_changes_no_logit_but_for_rounding_and_every_layer_has_an_adapter(
    trainer: str, tmp_path: Path
) -> None:
    recipe = tiny_run.tiny(tmp_path, *ALONE, f"improve.trainer={trainer}")
    args = trl_arguments(recipe, folder=tmp_path, device=torch.device("cpu"))
    adapter = ADAPTERS[trainer](rank=4, seed=0)
    model = AdapterTrainer(laboratory(), args, pairs(), TOKENIZER, adapter).model.eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(torch.randn_like(param), alpha=0.05)
    layers = laboratory().model.layers
    linear = sum(isinstance(m, torch.nn.Linear) for m in layers.modules())
    assert sum(isinstance(m, BaseTunerLayer) for m in model.modules()) == linear
    ids = torch.tensor([TOKENIZER(pairs()[0]["prompt"]).input_ids])
    with torch.no_grad():
        plain = laboratory()(ids).logits
        with_adapter = model(ids).logits
        merged = model.merge_and_unload()(ids).logits
    assert (with_adapter - plain).abs().max() > 100 * MERGED
    torch.testing.assert_close(merged, with_adapter, atol=MERGED, rtol=MERGED)


@pytest.mark.invariant("TRL and PEFT get our token ids, and the written model is the trained one.")
def test_pairs_reach_trl_in_our_token_ids(tmp_path: Path) -> None:
    rows = [dict(row) for row in pairs()]
    rows[0] |= {"chosen_finished": False, "rejected_finished": False}
    rows[1] |= {"prompt": TOKENIZER.bos_token + rows[1]["prompt"]}
    rows[2] |= {"prompt": [{"role": "user", "content": rows[2]["prompt"]}]}
    recipe = tiny_run.tiny(
        tmp_path, *ALONE, "improve.trainer=lora", "max_length=14", "sample.max_new_tokens=8"
    )
    TOKENIZER.chat_template, before = "{{ messages[0]['content'] }}", TOKENIZER.chat_template
    try:
        expected, counts = counted_pairs(TOKENIZER, rows, max_length=14)
        args = trl_arguments(recipe, folder=tmp_path, device=torch.device("cpu"))
        adapter = lora(rank=1, seed=0)
        trainer = AdapterTrainer(laboratory(), args, rows, TOKENIZER, adapter)
    finally:
        TOKENIZER.chat_template = before
    assert any(len(row["prompt_ids"]) + len(row["rejected_ids"]) == 14 for row in expected)  # some were cut
    assert trainer.num_dropped == counts.dropped
    batch = trainer.data_collator(list(trainer.train_dataset))
    for sides, mask, found in zip(
        [row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids") for row in expected],
        batch["attention_mask"],
        batch["input_ids"],
        strict=True,
    ):
        assert found[mask.bool()].tolist() == sides


@pytest.mark.parametrize("trainer", ON_POLICY)
def test_prompts_reach_trl_in_our_token_ids(trainer: str, tmp_path: Path) -> None:
    texts = {"a": TOKENIZER.bos_token + "Problem: 1 + 1 ?", "b": "Problem: 2 apples and 3 pears ?"}
    ids = {name: prompt_ids(TOKENIZER, text) for name, text in texts.items()}
    assert all(row.count(TOKENIZER.bos_token_id) == 1 for row in ids.values())
    seen, judged = [], []
    policy = on_policy(trainer, tmp_path, ids, lambda samples: judged.extend(samples) or [0.0] * len(samples))
    generate = policy.model.generate

    def spy(*, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
        seen.extend(row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True))
        return generate(input_ids=input_ids, attention_mask=attention_mask, **settings)

    policy.model.generate = spy
    policy.train()
    assert {tuple(row) for row in seen} == {tuple(row) for row in ids.values()}
    assert [ids[completion.prompt_id] for completion in judged] == seen


def on_policy(
    trainer: str,
    folder: Path,
    ids: dict[str, list[int]],
    rewards: Callable[[Sequence[Completion]], Any],
    *more: str,
) -> Any:
    recipe = tiny_run.tiny(folder, *ALONE, *STEPS, f"improve.trainer={trainer}", *more)
    args = trl_arguments(recipe, folder=folder, device=torch.device("cpu"))
    return on_policy_trainer(ON_POLICY[trainer], laboratory(), args, ids, TOKENIZER, rewards=rewards)


@pytest.mark.parametrize("trainer", ["rloo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_rewards_rise(trainer: str, sampled: Path, tmp_path: Path) -> None:
    """On eight problems of which the start answers some, over 12 steps."""
    run, _ = improved(
        sampled,
        tmp_path / "run",
        trainer,
        "sample.num_generations=8",
        "improve.training.per_device_train_batch_size=32",
        "improve.training.max_steps=12",
        "improve.training.learning_rate=5e-4",
        "improve.beta=0.01",
    )
    rewards = steps(run, "reward")
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 4 * 0.1
    assert set(steps(run, "step")) == set(range(1, 13))


@pytest.mark.parametrize("trainer", ["lora", "shira", "rloo", "grpo"])
def test_a_seed_makes_a_run_repeatable(trainer: str, sampled: Path, tmp_path: Path) -> None:
    more = ("data_seed=0", "improve.training.max_steps=2")
    first, again, other = (
        improved(sampled, tmp_path / name, trainer, f"seed={seed}", *more)[0].improve / "delta.safetensors"
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("trainer", [pytest.param("shira", marks=pytest.mark.slow), "grpo"])
def test_what_comes_after_knows_no_difference(trainer: str, sampled: Path, tmp_path: Path) -> None:
    shutil.copytree(sampled, tmp_path / "run")
    run = run_all(asked(tmp_path / "run", trainer))
    trained = read_json(run.manifest)["stages"]["improve"]["counts"]["trained_weights"]
    (aligned,) = (m for m in read_json(run.evaluation)["models"].values() if m["trained_weights"])
    assert aligned["trained_weights"] == trained
    assert (run.path / "report.html").is_file()


def test_a_diverged_on_policy_run_says_so(sampled: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="after step 1 logits are no longer finite"):
        improved(sampled, tmp_path / "run", "rloo", "improve.training.learning_rate=1e38")


def test_what_is_sampled_from_is_what_an_on_policy_run_depends_on(sampled: Path, tmp_path: Path) -> None:
    """Another verifier, by name: the verdicts and pairs are the same bytes, yet rewards may be others."""
    shutil.copytree(sampled, tmp_path / "run")
    few = "improve.training.max_steps=1"
    run = run_all(asked(tmp_path / "run", "rloo", few), until="improve")
    done = read_json(run.manifest)["stages"]
    run_all(asked(tmp_path / "run", "rloo", few, "judge.verifier=final_answer"), until="improve")
    now = read_json(run.manifest)["stages"]
    assert now["pair"]["outputs"] == done["pair"]["outputs"]
    assert now["improve"]["hash"] != done["improve"]["hash"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["improve.trainer=lora", "forget={}", "score={}"], "set `forget: null`"),
        (["improve.trainer=rloo", "improve.adapter_rank=4"], "has no adapter: remove adapter_rank"),
        (["improve.adapter_rank=4"], "has no adapter: remove adapter_rank"),
        (["improve.trainer=grpo", "data={pairs: x.jsonl}"], "in place of data.pairs"),
        (["improve.trainer=grpo", "sample.num_generations=1"], "sample.num_generations to 2 or more"),
        (["improve.trainer=rloo", "sample.stop=[x]"], "set sample.stop to"),
        (["improve.trainer=ppo"], "lora"),
        (["improve.trainer=lora", "improve.loss=ipo"], "has a loss of its own: remove loss"),
        (["improve.trainer=grpo", "improve.anchor=1.0"], "has a loss of its own: remove loss and anchor"),
    ],
)
def test_a_recipe_that_does_not_fit_its_trainer_is_refused(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        tiny_run.tiny(tmp_path, *ALONE, "improve.density=1.0", *settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["improve.trainer=lora", "improve.training.learning_rat=1"], "did you mean learning_rate"),
        (["improve.trainer=lora", "improve.training.beta=1"], "set by allo from the recipe"),
        (["improve.trainer=lora", "improve.training.save_strategy=steps"], "set by allo from the recipe"),
        (["improve.trainer=rloo", "improve.training.per_device_train_batch_size=6"], "num_generations"),
        (["improve.trainer=grpo", "improve.training.bf16=true"], "mixed precision does not apply"),
    ],
)
def test_bad_training_settings_are_found_before_anything_runs(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^improve\.training.*{message}"):
        check(tiny_run.tiny(tmp_path, *ALONE, *settings))


def test_a_field_of_trls_own_goes_to_trl(tmp_path: Path) -> None:
    recipe = tiny_run.tiny(tmp_path, *ALONE, "improve.trainer=grpo", "improve.training.num_iterations=3")
    check(recipe)
    assert trl_arguments(recipe, folder=tmp_path, device=torch.device("cpu")).num_iterations == 3


def test_a_missing_package_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    check(tiny_run.tiny(tmp_path, *ALONE, "improve.trainer=rloo"))
    with pytest.raises(UserError, match=r"'shira'.*not installed: peft\. .*'allo-align\[trl,peft\]'"):
        check(tiny_run.tiny(tmp_path, *ALONE, "improve.trainer=shira"))


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    sent: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **what: sent.append(what))
    return sent


def test_nothing_is_sent_anywhere(telemetry: list[Any], tmp_path: Path) -> None:
    for trainer in ON_POLICY:
        on_policy(trainer, tmp_path, {"a": prompt_ids(TOKENIZER, "Problem: 1 ?")}, lambda _: [])
    recipe = tiny_run.tiny(tmp_path, *ALONE, "improve.trainer=lora")
    args = trl_arguments(recipe, folder=tmp_path, device=torch.device("cpu"))
    AdapterTrainer(laboratory(), args, pairs(), TOKENIZER, lora(rank=1, seed=0))
    assert telemetry == []


def test_a_plan_names_what_it_does_not_plan(tmp_path: Path) -> None:
    planned = plan(tiny_run.tiny(tmp_path, *ALONE, "improve.trainer=lora"))
    assert list(planned.unplanned) == ["improve"]
    assert "improve" not in {stage.stage for stage in planned.stages}
