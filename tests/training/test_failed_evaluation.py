"""Training goes on after an evaluation that raised, as if there had been none: same weights, same logs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from tiny import TOKENIZER, arguments, every_third, feedback, model, pairs, weights, wrongs

KINDS: dict[str, tuple[type[SelectedTrainer], Any, dict[str, Any]]] = {
    "pairs": (ImproveTrainer, pairs, {"loss": "dpo"}),
    "pairs with a mean": (ImproveTrainer, pairs, {"loss": "bco"}),
    "kto": (FeedbackTrainer, feedback, {"loss": "kto"}),
    "bco": (FeedbackTrainer, feedback, {"loss": "bco"}),
    "wrong": (ForgetTrainer, wrongs, {}),
}


class FailedError(Exception):
    pass


class EvaluateInVain(TrainerCallback):
    """Evaluates after each step, and lets the evaluation fail at its `at`th loss; of 0, in `compute_metrics`."""

    def __init__(self, at: int) -> None:
        self.at, self.failed = at, 0
        self.trainer: SelectedTrainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        loss, left = self.trainer.loss, [self.at]

        def failing(batch: Any, *, denominator: Any) -> torch.Tensor:
            left[0] -= 1
            if left[0] == 0:
                raise FailedError
            return loss(batch, denominator=denominator)

        vars(self.trainer)["loss"] = failing
        try:
            self.trainer.evaluate()
        except FailedError:
            self.failed += 1
        finally:
            del vars(self.trainer)["loss"]


def refuses(_: Any) -> dict[str, float]:
    raise FailedError


def run(
    folder: Path, kind: str, failing: int | None
) -> tuple[Mapping[str, torch.Tensor], list[dict[str, float]], int]:
    trainer_of, rows, own = KINDS[kind]
    policy, vain = model(), EvaluateInVain(failing or 0)
    trainer = trainer_of(
        policy,
        arguments(
            folder, num_train_epochs=1, per_device_eval_batch_size=2, eval_strategy="no", logging_steps=2
        ),
        rows(),
        TOKENIZER,
        mask=every_third(policy),
        eval_dataset=rows()[:6],
        callbacks=[] if failing is None else [vain],
        compute_metrics=refuses if failing == 0 else None,
        **own,
    )
    vain.trainer = trainer
    trainer.train()
    timed = ("runtime", "second", "flos")
    logs = [
        {key: value for key, value in row.items() if not any(word in key for word in timed)}
        for row in trainer.state.log_history
    ]
    return weights(policy), logs, vain.failed


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_evaluation_leaves_no_trace(tmp_path: Path, kind: str) -> None:
    expected, logs, _ = run(tmp_path / "alone", kind, None)
    places = (1, 2) if kind == "wrong" else (0, 1, 2)
    for failing in places:
        found, own_logs, failed = run(tmp_path / str(failing), kind, failing)
        assert failed >= 2, "each evaluation raised"
        assert own_logs == logs
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
