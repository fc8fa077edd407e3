"""Keys of a recipe's `training` blocks that would be taken and ignored are refused, as are values of another type."""

from pathlib import Path
from typing import Any

import pytest
import torch

from allo.errors import UserError
from allo.recipe.training import ForgetTraining, Training
from allo.training.arguments import training_arguments


def build(folder: Path, **given: Any) -> Any:
    return training_arguments(given, folder=folder, seed=0, device=torch.device("cpu"), key="sft.training")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("do_eval", True), ("do_eval", False), ("do_train", True), ("do_predict", True)),
        *(
            ("resume_from_checkpoint", "old/checkpoint-5"),
            ("resume_from_checkpoint", True),
            ("fsdp_config", {}),
        ),
        *(
            ("gradient_checkpointing", "yes"),
            ("gradient_checkpointing", 1),
            ("activation_checkpointing", "false"),
        ),
        *(
            ("full_determinism", "no"),
            ("tf32", "yes"),
            ("logging_first_step", 0),
            ("dataloader_drop_last", "n"),
        ),
        *(("max_steps", "5"), ("max_steps", 5.5), ("eval_delay", "1"), ("optim_args", {"a": 1})),
        *(("lr_scheduler_kwargs", [1]), ("debug", 3), ("ddp_timeout", None)),
    ],
)
def test_a_key_that_nothing_reads_or_a_value_of_another_type_is_refused(
    tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(UserError, match=f"^sft.training.{key}: "):
        build(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("activation_checkpointing", True),
            ("max_steps", 5),
            ("eval_delay", 1),
        ),
        *(("lr_scheduler_kwargs", {"num_cycles": 2}), ("adam_epsilon", 1), ("logging_first_step", True)),
        *(("report_to", ["none"]), ("save_strategy", "no"), ("max_grad_norm", 0.5)),
    ],
)
def test_values_of_the_right_type_are_taken(tmp_path: Path, key: str, value: Any) -> None:
    assert getattr(build(tmp_path, **{key: value}), key) in (
        value,
        *(value if isinstance(value, list) else ()),
        [],
    )


@pytest.mark.parametrize("kind", [Training, ForgetTraining])
def test_a_block_of_numbers_alone_needs_no_trainer_to_be_checked(
    tmp_path: Path, kind: type[Training]
) -> None:
    """Whatever the recipe takes for one of these numbers, transformers takes."""
    extremes: dict[str, list[Any]] = {
        "learning_rate": [1e-300, 1, 1e30],
        "num_train_epochs": [1e-9, 3, 10**6],
        "per_device_train_batch_size": [1, 1000],
        "gradient_accumulation_steps": [1, 10**6],
        "save_total_limit": [2, 10**6],
    }
    assert kind().is_plain
    for key, values in extremes.items():
        for value in values:
            block = kind(**{key: value})
            assert block.is_plain
            build(tmp_path, **block.model_dump())
    assert not kind(logging_steps=1.5).is_plain
    assert not kind(do_eval=True).is_plain


def test_all_faults_of_a_block_are_named_at_once(tmp_path: Path) -> None:
    given = {"learning_rat": 1e-4, "num_train_epochs": "two", "do_train": True, "hub_token": "x"}
    with pytest.raises(UserError) as refused:
        training_arguments(given, folder=tmp_path, seed=0, device=torch.device("cpu"), key="sft.training")
    first, *listed = str(refused.value).splitlines()
    assert first == "4 settings cannot be honoured:"
    assert [line.split(":")[0].strip() for line in listed] == [f"sft.training.{name}" for name in given]
