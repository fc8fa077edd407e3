"""A loss of your own: from the sums of B preference pairs to B numbers.

This one stops pushing once a pair's margin is large enough. A recipe names it by its file, and ImproveTrainer takes the
function itself:

    improve: {loss: examples/own_loss.py:hinge, loss_settings: {margin: 2.0}}
"""

import sys
from pathlib import Path

from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import allo
from allo.losses import PairSums


def hinge(pairs: PairSums, *, beta: float, margin: float = 1.0) -> Tensor:
    """max(0, margin - (r_c - r_r)) [B], where a reward r is beta times the log-ratio to the reference [B]."""
    chosen, rejected = pairs.rewards(beta=beta)
    return (margin - (chosen - rejected)).clamp(min=0)


def train(out: str) -> allo.ImproveTrainer:
    lab = Path(allo.__file__).parent / "lab"
    tokenizer, model = AutoTokenizer.from_pretrained(lab), AutoModelForCausalLM.from_pretrained(lab)
    pair = {
        "prompt": "Problem: Tom has 12 pens. He buys 3 pens. He sells 5 pens. How many pens now?\n",
        "chosen": "First 12 + 3 = 15. Then 15 - 5 = 10. The answer is 10.",
        "rejected": "First 12 - 3 = 9. Then 9 - 5 = 4. The answer is 4.",
    }
    shapes = {name: tuple(weights.shape) for name, weights in model.named_parameters()}
    trainer = allo.ImproveTrainer(
        model,
        TrainingArguments(out, learning_rate=1e-3, max_steps=12, logging_steps=1, report_to="none"),
        [pair],
        tokenizer,
        mask=allo.ParamMask.full(shapes),
        keep=1.0,
        loss=hinge,
        loss_settings={"margin": 2.0},
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    for step in train(*sys.argv[1:]).state.log_history[:-1]:
        print(f"step {step['step']:>2}: margin {step['rewards/margins']:.2f}, loss {step['loss']:.2f}")
