"""A trainer's arguments as scripts of TRL and transformers give them: taken, or refused by name with the reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from allo.errors import UserError
from allo.models.load import load_tokenizer
from allo.recipe.training import ImproveTraining
from allo.training.given import UNSUPPORTED, given_tokenizer, named_model
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.training.trainer_options import Unsupported
from gguf_file import make as make_gguf
from tiny import (
    LABORATORY,
    SEED,
    TOKENIZER,
    arguments,
    full_mask,
    logged,
    model,
    pairs,
    trained,
    weights,
    wrongs,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "base"
    model().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_a_model_by_its_name_trains_as_the_model_does(saved: Path, tmp_path: Path) -> None:
    policy = model()
    expected = trained(
        ImproveTrainer, pairs(), tmp_path / "a", policy=policy, mask=full_mask(policy), max_steps=2
    )
    for name in (saved, str(saved)):
        trainer = ImproveTrainer(name, arguments(tmp_path / "b", max_steps=2), pairs(), mask=1.0)
        trainer.train()
        assert logged(trainer) == logged(expected)
        assert trainer.processing_class.get_vocab() == TOKENIZER.get_vocab()
    for name, tensor in weights(expected.model).items():
        assert torch.equal(weights(trainer.model)[name], tensor)


def test_a_model_by_its_name_is_loaded_in_the_precision_that_is_asked_for(
    saved: Path, tmp_path: Path
) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, bf16=True, report_to="none")
    assert ImproveTrainer(str(saved), args, pairs(), mask=1.0).model.dtype == torch.bfloat16
    plain = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert ImproveTrainer(str(saved), plain, pairs(), mask=1.0).model.dtype == torch.float32


def test_a_config_says_how_a_model_is_loaded(saved: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL's DPOConfig; install the extra `trl`")
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "activation_checkpointing": False}
    args = trl.DPOConfig(str(tmp_path), model_init_kwargs={"dtype": "bfloat16"}, **quiet)
    assert ImproveTrainer(str(saved), args, pairs(), mask=1.0).model.dtype == torch.bfloat16
    for name, value in (
        ("dtype", "float16"),
        ("attn_implementation", "flash_attention_2"),
        ("revision", "v1"),
    ):
        args = trl.DPOConfig(str(tmp_path), model_init_kwargs={name: value}, **quiet)
        with pytest.raises(UserError, match=rf"^DPOConfig\.model_init_kwargs\.{name} is '{value}'"):
            ImproveTrainer(str(saved), args, pairs(), mask=1.0)


def test_a_tokenizer_without_a_pad_token_pads_with_eos_as_in_trl(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trl = pytest.importorskip("trl", reason="TRL's DPOConfig; install the extra `trl`")
    for token, expected in ((None, TOKENIZER.eos_token), ("=", "=")):
        tokenizer = load_tokenizer(LABORATORY)
        tokenizer.pad_token = None
        quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "activation_checkpointing": False}
        args = trl.DPOConfig(str(tmp_path), pad_token=None, **quiet)
        args.pad_token = token  # TRL calls it deprecated
        trainer = ImproveTrainer(str(saved), args, pairs(), tokenizer, mask=1.0)
        assert trainer.processing_class.pad_token == expected
        assert capsys.readouterr().err.count("no pad token") == 1, token
    tokenizer.pad_token = None
    plain = arguments(tmp_path)
    with pytest.raises(UserError, match="the tokenizer has no pad token"):
        ImproveTrainer(str(saved), plain, pairs(), tokenizer, mask=1.0)


def test_without_arguments_those_of_a_recipe_are_taken_and_reported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = ImproveTrainer(str(saved), train_dataset=pairs(), mask=1.0)
    assert trainer.args.learning_rate == ImproveTraining().learning_rate
    assert trainer.rows_a_step == 128
    said = capsys.readouterr().err
    assert "args: none are given" in said and "learning_rate 5e-06" in said and "base-allo" in said


@pytest.mark.parametrize("kind", [ImproveTrainer, ForgetTrainer, SftTrainer])
def test_keywords_of_other_trainers_are_refused_with_the_reason_unless_none(
    kind: Any, tmp_path: Path
) -> None:
    assert UNSUPPORTED.keys() == Unsupported.__annotations__.keys()
    policy = model()
    rows = pairs() if kind is ImproveTrainer else wrongs()
    given = (policy, arguments(tmp_path), rows, TOKENIZER)
    kind(*given, mask=full_mask(policy), **dict.fromkeys(UNSUPPORTED))
    for name, value in {"ref_model": model(), "peft_config": object(), "tokenizer": TOKENIZER}.items():
        with pytest.raises(UserError, match=rf"^{name}: .+\. Remove it"):
            kind(*given, mask=full_mask(policy), **{name: value})
    with pytest.raises(UserError, match=r"^eval_datasets: .*did you mean eval_dataset\?"):
        kind(*given, mask=full_mask(policy), eval_datasets=rows)


def test_what_cannot_be_a_model_tokenizer_or_arguments_is_refused(tmp_path: Path) -> None:
    policy = model()
    args, mask = arguments(tmp_path), full_mask(policy)
    wrapped = torch.nn.Module()
    wrapped.peft_config = {}
    with pytest.raises(UserError, match=r"^model is a Module: merge its adapter"):
        named_model(wrapped)  # as in `allo.locate` and `allo.score`
    for given, says in (
        ((wrapped, args, pairs(), TOKENIZER), r"^model is a Module: merge its adapter"),
        ((policy, model(), args, pairs()), r"^args is a LlamaForCausalLM: .*ref_model, is not needed"),
        ((policy, args, pairs(), object()), r"^processing_class is a object: .*processor\.tokenizer"),
        ((policy, args, pairs()), r"^processing_class: none is given, and the model has no name"),
        ((policy, args), r"^train_dataset: none is given"),
        (("no/such/folder", args, pairs()), r"no/such/folder"),
    ):
        with pytest.raises(UserError, match=says):
            ImproveTrainer(*given, mask=mask)


def test_several_data_sets_are_evaluated_by_name(tmp_path: Path) -> None:
    first, second = pairs()[:6], pairs()[6:]
    alone = trained(ImproveTrainer, pairs(), tmp_path / "a", max_steps=2)
    own = {"eval_dataset": {"one": first, "two": Dataset.from_list(second)}}
    trainer = trained(
        ImproveTrainer, pairs(), tmp_path / "b", own=own, max_steps=2, eval_strategy="steps", eval_steps=1
    )
    for found in (trainer.evaluate(), trainer.evaluate({"one": first, "two": second})):
        for name, rows in (("one", first), ("two", second)):
            expected = alone.evaluate(rows)
            for metric in ("loss", "rewards/margins", "entropy"):
                assert found[f"eval_{name}_{metric}"] == pytest.approx(expected[f"eval_{metric}"])
    assert len(logged(trainer, "eval_two_loss")) >= 2
    assert trainer.evaluate("one", metric_key_prefix="only")["only_loss"] == found["eval_one_loss"]
    with pytest.raises(UserError, match="eval_dataset: the dict is empty"):
        trained(ImproveTrainer, pairs(), tmp_path / "c", own={"eval_dataset": {}})
    with pytest.raises(UserError, match=r"^eval_dataset 'bad', row 0"):
        trained(ImproveTrainer, pairs(), tmp_path / "c", own={"eval_dataset": {"bad": [{"chosen": 1}]}})


def test_a_precomputed_reference_has_every_data_set(tmp_path: Path) -> None:
    sets = {"one": pairs()[:6], "two": pairs()[6:]}
    runs = [
        trained(
            ImproveTrainer, pairs(), tmp_path / way, own={"eval_dataset": sets, "reference": way}, max_steps=2
        ).evaluate()
        for way in ("swap", "precomputed")
    ]
    for name in ("eval_one_loss", "eval_two_rewards/margins"):
        assert runs[1][name] == pytest.approx(runs[0][name], abs=1e-5)


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_metrics_of_ones_own_see_what_trl_shows_them(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is the oracle; install the extra `trl`")
    seen: list[Any] = []

    def keep(prediction: Any) -> dict[str, float]:
        seen.append((prediction.predictions, prediction.label_ids))
        return {"mine": float(np.mean(prediction.label_ids)), "eval_named": 1.0}

    config = trl.DPOConfig(
        str(tmp_path / "trl"),
        use_cpu=True,
        bf16=False,
        per_device_eval_batch_size=2,
        seed=SEED,
        report_to="none",
        disable_tqdm=True,
        activation_checkpointing=False,
    )
    given = {"eval_dataset": Dataset.from_list(pairs()[:6]), "compute_metrics": keep}
    theirs = trl.DPOTrainer(
        model(),
        ref_model=model(),
        args=config,
        train_dataset=Dataset.from_list(pairs()),
        processing_class=TOKENIZER,
        **given,
    )
    expected = theirs.evaluate()
    policy = model()
    args = arguments(tmp_path / "allo", per_device_eval_batch_size=2)
    found = ImproveTrainer(policy, args, pairs(), TOKENIZER, mask=full_mask(policy), **given).evaluate()
    (logits, ids), (our_logits, our_ids) = seen
    assert np.array_equal(ids, our_ids)
    np.testing.assert_allclose(our_logits, logits, atol=1e-4)
    assert found["eval_mine"] == expected["eval_mine"] and found["eval_named"] == 1.0


def test_an_optimizer_of_ones_own_trains_the_masks_weights(tmp_path: Path) -> None:
    settings = {"max_steps": 3, "learning_rate": 0.3, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    expected = trained(ImproveTrainer, pairs(), tmp_path / "a", optim="sgd", weight_decay=0.0, **settings)
    policy = model()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = trained(
        ImproveTrainer,
        pairs(),
        tmp_path / "b",
        policy=policy,
        own={"optimizers": (optimizer, scheduler)},
        **settings,
    )
    assert logged(trainer) == pytest.approx(logged(expected), abs=1e-6)
    assert logged(trainer)[0] != pytest.approx(logged(trainer)[-1], rel=1e-3)
    for name, tensor in weights(expected.model).items():
        torch.testing.assert_close(weights(trainer.model)[name], tensor)


def test_an_optimizer_that_would_train_something_else_is_refused(tmp_path: Path) -> None:
    policy = model()
    groups = [{"params": [param]} for param in policy.parameters()]
    used = torch.optim.AdamW(policy.parameters())
    used.state[next(policy.parameters())]["step"] = torch.ones(1)
    plain = torch.optim.SGD(policy.parameters(), lr=0.1)
    for optimizers, own, says in (
        ((torch.optim.SGD(groups, lr=0.1), None), {}, r"has \d+ groups"),
        ((torch.optim.SGD(model().parameters(), lr=0.1), None), {}, "which the optimizer does not train"),
        ((used, None), {}, "has not stepped"),
        ((plain, None), {"lean": True}, "its own AdamW"),
        ((None, torch.optim.lr_scheduler.LambdaLR(plain, lambda step: 1.0)), {}, "needs its optimizer"),
    ):
        with pytest.raises(UserError, match=rf"^optimizers: .*{says}"):
            ImproveTrainer(
                policy,
                arguments(tmp_path),
                pairs(),
                TOKENIZER,
                mask=full_mask(policy),
                optimizers=optimizers,
                **own,
            )


def test_a_gguf_file_is_a_model_and_brings_its_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = make_gguf(tmp_path / "base.gguf")
    policy = named_model(file)
    assert given_tokenizer(None, policy).get_vocab() == load_tokenizer(file).get_vocab()
    policy.name_or_path = str(tmp_path)  # as transformers calls a model that it read from the file
    with pytest.raises(UserError, match=r"processing_class: none is given.*give the tokenizer"):
        given_tokenizer(None, policy)
