"""TRL's `DPOConfig` given to our trainers: honoured as TRL reads it, or refused by name. Nothing is ignored."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, TrainingArguments

from allo.errors import UserError
from allo.losses.pair_losses import PairSums, dpo
from allo.training import dpo_config
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from tiny import EIGHT_STEPS, SEED, TOKENIZER, full_mask, model, pairs, weights, wrongs

pytestmark = pytest.mark.invariant(
    "A field of TRL's `DPOConfig` or of `TrainingArguments` is honoured or refused."
)

trl = pytest.importorskip("trl", reason="TRL is the oracle; install the extra `trl`")

TOLERANCE = 1e-5  # fp32 over eight steps, see test_trl_parity
QUIET = {
    "use_cpu": True,
    "disable_tqdm": True,
    "log_level": "error",
    "bf16": False,
    "activation_checkpointing": False,
}


def config(folder: Path, **settings: Any) -> Any:
    # Adam's first steps divide gradients near 0 by themselves: without a larger epsilon rounding decides their sign.
    plain = {"weight_decay": 0.0, "seed": SEED, "adam_epsilon": 1e-4}
    return trl.DPOConfig(output_dir=str(folder), **(QUIET | EIGHT_STEPS | plain | settings))


def improving(
    args: Any, rows: Any = None, *, policy: PreTrainedModel | None = None, **own: Any
) -> ImproveTrainer:
    policy = model() if policy is None else policy
    return ImproveTrainer(
        policy, args, rows or pairs(), TOKENIZER, mask=full_mask(policy), **({"keep": 1.0} | own)
    )


# TRL 1.16 reads a name that transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.3},
        {"beta": 5.0, "loss_type": ["ipo"], "max_length": 14},
        {"beta": 0.3, "loss_type": ["robust"], "label_smoothing": 0.2, "max_length": 12},
        {"beta": 0.3, "loss_type": "bco_pair", "precompute_ref_log_probs": True},
    ],
    ids=lambda settings: settings.get("loss_type", "sigmoid")[0],
)
def test_a_config_trains_as_in_trl(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = pairs()
    theirs = model()
    expected = trl.DPOTrainer(
        theirs,
        ref_model=None if settings.get("precompute_ref_log_probs") else model(),
        args=config(tmp_path / "trl", **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    expected.train()
    ours = model()
    trainer = improving(config(tmp_path / "allo", **settings), rows, policy=ours)
    trainer.train()
    assert trainer.num_dropped == len(rows) - len(expected.train_dataset)
    steps, their_steps = (
        [row for row in each.state.log_history if "loss" in row] for each in (trainer, expected)
    )
    assert len(steps) == len(their_steps)
    assert steps[0]["loss"] != pytest.approx(steps[-1]["loss"], rel=0.05)
    for step, their_step in zip(steps, their_steps, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected"):
            assert step[name] == pytest.approx(their_step[name], abs=TOLERANCE, rel=10 * TOLERANCE), name
    for name, tensor in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], tensor, atol=5 * TOLERANCE, rtol=TOLERANCE)


def test_a_config_says_what_the_trainer_does(tmp_path: Path) -> None:
    args = config(
        tmp_path, beta=5.0, loss_type=["ipo"], max_length=8, precompute_ref_log_probs=True, learning_rate=3e-7
    )
    trainer = improving(args, [{"prompt": "Problem: Tom", "chosen": " has", "rejected": " has 3 pens"}])
    assert (trainer.beta, trainer.max_length, trainer.reference) == (5.0, 8, "precomputed")
    assert trainer.pair_loss is dpo_config.LOSSES["ipo"] or trainer.pair_loss.__name__ == "ipo"
    assert trainer.args.learning_rate == 3e-7
    default = improving(config(tmp_path))
    assert (default.beta, default.max_length, default.reference) == (0.1, 1024, "swap")
    assert default.pair_loss is dpo


@pytest.mark.parametrize(("keep", "said"), [(0.5, True), (1.0, False)])
def test_a_loss_that_is_not_trls_is_said_to_be_another(
    keep: float, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    improving(config(tmp_path), keep=keep)
    assert ("does not compare with TRL's" in " ".join(capsys.readouterr().err.split())) == said


def test_a_robust_loss_has_trls_smoothing(tmp_path: Path) -> None:
    args = config(tmp_path, loss_type=["robust"], label_smoothing=0.1)
    assert improving(args).loss_settings == {"label_smoothing": 0.1}
    pairs_ = PairSums(*torch.tensor([[-4.0], [-2.0], [2], [3], [1.5], [-0.5]]))
    margin = torch.tensor([0.6], dtype=torch.float64)
    expected = (-0.9 * margin.sigmoid().log() + 0.1 * (-margin).sigmoid().log()) / 0.8
    found = dpo_config.robust(pairs_, beta=0.3, label_smoothing=0.1)
    torch.testing.assert_close(found.double(), expected)


# Every field of TRL's config, at a value that is not its default.
OTHER: dict[str, Any] = {
    "model_init_kwargs": {"dtype": "float32"},
    "trust_remote_code": True,
    "router_aux_loss_coef": 0.01,
    "disable_dropout": False,
    "dataset_num_proc": 2,
    "max_length": 16,
    "truncation_mode": "keep_end",
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "precompute_ref_log_probs": True,
    "precompute_ref_batch_size": 2,
    "loss_type": ["hinge"],
    "loss_weights": [0.5],
    "ld_alpha": 0.5,
    "f_divergence_type": "forward_kl",
    "f_alpha_divergence_coef": 0.7,
    "label_smoothing": 0.1,
    "beta": 0.7,
    "use_weighting": True,
    "discopop_tau": 0.1,
    "activation_offloading": True,
    "sync_ref_model": True,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 8,
    "pad_token": "=",
}
HONOURED = {"max_length", "precompute_ref_log_probs", "beta"}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    "field",
    [
        field.name
        for field in dataclasses.fields(trl.DPOConfig)
        if field.name not in TrainingArguments.__dataclass_fields__
    ],
)
def test_each_field_is_honoured_or_refused_by_name(field: str, tmp_path: Path) -> None:
    default = improving(config(tmp_path))
    args = config(tmp_path, **{field: OTHER[field]})
    assert getattr(args, field) != getattr(config(tmp_path), field)
    if field in HONOURED:
        trainer = improving(args)
        assert (trainer.beta, trainer.max_length, trainer.reference) != (
            default.beta,
            default.max_length,
            default.reference,
        )
    else:
        with pytest.raises(UserError, match=rf"^DPOConfig\.{field}\b.*\. .*(Remove|Set|Change)"):
            improving(args)


def test_each_field_has_one_reading() -> None:
    own = {field.name for field in dataclasses.fields(trl.DPOConfig)} - set(
        TrainingArguments.__dataclass_fields__
    )
    assert dpo_config.FIELDS.keys() == own


def test_a_field_of_another_version_is_refused_unless_at_its_default(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Later(trl.DPOConfig):
        rpo_alpha: float | None = None

    assert improving(Later(output_dir=str(tmp_path), **QUIET)).beta == 0.1
    with pytest.raises(UserError, match=r"^Later\.rpo_alpha is 0\.5: allo does not know this field"):
        improving(Later(output_dir=str(tmp_path), rpo_alpha=0.5, **QUIET))


def test_a_field_that_a_user_adds_to_the_arguments_is_refused(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Own(TrainingArguments):
        beta: float = 0.1

    for kind, rows in ((ImproveTrainer, pairs()), (ForgetTrainer, wrongs()), (SftTrainer, wrongs())):
        policy = model()
        kind(policy, Own(str(tmp_path), **QUIET), rows, TOKENIZER, mask=full_mask(policy))
        with pytest.raises(UserError, match=r"^Own\.beta is 0\.2: allo does not know"):
            kind(policy, Own(str(tmp_path), beta=0.2, **QUIET), rows, TOKENIZER, mask=full_mask(policy))


def test_all_that_cannot_be_honoured_is_named_at_once(tmp_path: Path) -> None:
    args = config(tmp_path, ld_alpha=0.1, use_weighting=True, label_smoothing=0.1, torch_empty_cache_steps=3)
    with pytest.raises(UserError) as refused:
        ImproveTrainer("no/such/model", args, pairs(), TOKENIZER, peft_config=object(), ref_model=object())
    first, *listed = str(refused.value).splitlines()
    assert first == "6 settings cannot be honoured:"
    for name in (
        "peft_config",
        "ref_model",
        "torch_empty_cache_steps",
        *("ld_alpha", "use_weighting", "label_smoothing"),
    ):
        assert sum(name in line.split(":")[0] for line in listed) == 1, name


@pytest.mark.parametrize("name", ["SFTConfig", "GRPOConfig", "RewardConfig", "KTOConfig"])
def test_another_config_of_trl_is_refused_by_name(name: str, tmp_path: Path) -> None:
    args = getattr(trl, name)(output_dir=str(tmp_path), **QUIET)
    with pytest.raises(UserError, match=rf"^{name}: .*ImproveTrainer would ignore.*trl\.DPOConfig"):
        improving(args)
    policy = model()
    with pytest.raises(UserError, match=r"^DPOConfig: .*SftTrainer would ignore"):
        SftTrainer(policy, config(tmp_path), wrongs(), TOKENIZER, mask=full_mask(policy))


def test_forgetting_reads_what_it_has_of_a_config(tmp_path: Path) -> None:
    policy = model()
    given = (wrongs(), TOKENIZER)
    trainer = ForgetTrainer(policy, config(tmp_path, beta=0.7), *given, mask=full_mask(policy))
    assert trainer.beta == 0.7 and trainer.max_length == 1024
    for field, value in (("loss_type", ["ipo"]), ("label_smoothing", 0.1), ("ld_alpha", 0.1)):
        with pytest.raises(UserError, match=rf"^DPOConfig\.{field}"):
            ForgetTrainer(policy, config(tmp_path, **{field: value}), *given, mask=full_mask(policy))


@pytest.mark.parametrize(
    "given", [["sigmoid", "sft"], ["sigmoid", "sigmoid"], [], ("ipo", "robust"), [["ipo"]]], ids=str
)
def test_several_losses_are_refused_by_name(given: Any, tmp_path: Path) -> None:
    args = config(tmp_path)
    args.loss_type = given
    policy = model()
    for kind, rows in ((ImproveTrainer, pairs()), (ForgetTrainer, wrongs())):
        with pytest.raises(
            UserError, match=rf"^DPOConfig\.loss_type is {re.escape(repr(given))}: {kind.__name__} has no"
        ):
            kind(policy, args, rows, TOKENIZER, mask=full_mask(policy))


def test_completions_lose_their_end_with_their_weights(tmp_path: Path) -> None:
    policy = model()
    rows = [
        {"prompt": "Problem: Tom", "completion": " has 3 pens", "token_weights": [0, 0, 1, 1]},
        {"prompt": "Problem: Tom", "completion": " has 3 pens", "token_weights": [1, 0, 1, 1]},
    ]
    num_prompt = len(TOKENIZER("Problem: Tom").input_ids)
    trainer = ForgetTrainer(
        policy, config(tmp_path, max_length=num_prompt + 2), rows, TOKENIZER, mask=full_mask(policy)
    )
    (row,) = trainer.train_dataset
    assert row["token_weights"] == [1, 0] and len(row["completion_ids"]) == 2 and trainer.num_dropped == 1


@pytest.mark.parametrize(
    ("settings", "own", "words"),
    [
        ({"beta": 5.0}, {"beta": 0.1}, r"^beta: .*given 0\.1, and the config has beta 5\.0"),
        (
            {"loss_type": ["ipo"]},
            {"loss": "dpo"},
            r"^loss: .*given 'dpo', and the config has loss_type 'ipo'",
        ),
        ({"max_length": 64}, {"max_length": 63}, r"^max_length: .*given 63"),
        ({"precompute_ref_log_probs": True}, {"reference": "swap"}, r"^reference: .*given 'swap'"),
    ],
)
def test_a_keyword_that_contradicts_the_config_is_refused(
    settings: dict[str, Any], own: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        improving(config(tmp_path, **settings), **own)


def test_a_keyword_beside_what_the_config_leaves_at_its_default_wins(tmp_path: Path) -> None:
    own = {"beta": 0.4, "loss": "simpo", "max_length": 30, "reference": "precomputed"}
    trainer = improving(config(tmp_path), **own)
    assert (trainer.beta, trainer.max_length, trainer.reference) == (0.4, 30, "precomputed")
    assert trainer.pair_loss.__name__ == "simpo" and not trainer.cuts_ends


def test_mixed_precision_is_the_dtype_of_a_bf16_model(tmp_path: Path) -> None:
    """TRL switches bf16 on where nothing is said."""
    plain = {name: value for name, value in QUIET.items() if name != "bf16"}
    args = trl.DPOConfig(str(tmp_path), max_steps=1, **plain)
    assert args.bf16
    with pytest.raises(UserError, match=r"^DPOConfig\.bf16 is on \(its default\).*bf16=False"):
        improving(args)
    trainer = improving(args, policy=model(torch.bfloat16))
    assert args.bf16, "the caller's config stays as it is"
    trainer.train()
    assert trainer.accelerator.mixed_precision == "no"
    other = copy.copy(args)
    other.bf16, other.fp16 = False, True
    with pytest.raises(UserError, match=r"^fp16: mixed precision"):
        improving(other)


def test_a_routers_auxiliary_loss_is_refused_until_it_is_off(tmp_path: Path) -> None:
    """TRL adds what the model's config says where its own says nothing."""
    torch.manual_seed(0)
    policy = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
            max_position_embeddings=64,
            sliding_window=None,
        )
    )
    with pytest.raises(UserError, match=r"^DPOConfig\.router_aux_loss_coef: TRL would add .*Set it to 0\.0"):
        improving(config(tmp_path), policy=policy)
    assert improving(config(tmp_path, router_aux_loss_coef=0.0), policy=policy).beta == 0.1
