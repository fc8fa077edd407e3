"""Checkpoints that are models, where `save_only_model` asks for them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from allo.errors import UserError
from allo.training.checkpointing import SELECTED_FILE
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from tiny import TOKENIZER, full_mask, model, pairs, weights, wrongs

SAVES = {
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "report_to": "none",
}
QUIET = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4}


def training(kind: type[SelectedTrainer], folder: Path, **settings: object) -> SelectedTrainer:
    policy = model(torch.bfloat16)
    args = TrainingArguments(str(folder), **(SAVES | QUIET | settings))
    rows = pairs() if kind is ImproveTrainer else wrongs()
    return kind(policy, args, rows, TOKENIZER, mask=full_mask(policy))


@pytest.mark.parametrize("kind", [ImproveTrainer, ForgetTrainer])
def test_a_checkpoint_loads_in_transformers_with_its_tokenizer(
    kind: type[SelectedTrainer], tmp_path: Path
) -> None:
    trainer = training(kind, tmp_path, save_only_model=True)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    start, moved = weights(model(torch.bfloat16)), 0
    for name, tensor in weights(trainer.model).items():
        assert torch.equal(weights(loaded)[name], tensor)
        moved += int((tensor != start[name]).sum())
    assert moved > 0
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == TOKENIZER.get_vocab()
    assert not (folder / SELECTED_FILE).exists() and not (folder / "optimizer.safetensors").exists()


def test_it_is_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    training(ImproveTrainer, tmp_path, save_only_model=True).train()
    with pytest.raises(UserError, match=r"checkpoint-2: training cannot resume .*give its folder as `model`"):
        training(ImproveTrainer, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_best_model_cannot_be_loaded_without_its_masters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^load_best_model_at_end: with save_only_model"):
        training(
            ImproveTrainer,
            tmp_path,
            save_only_model=True,
            load_best_model_at_end=True,
            eval_strategy="steps",
            eval_steps=2,
        )


def test_otherwise_a_checkpoint_holds_the_selected_weights(tmp_path: Path) -> None:
    training(ImproveTrainer, tmp_path).train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert SELECTED_FILE in names and "model.safetensors" not in names and "config.json" not in names
