"""From TRL's DPOTrainer to ImproveTrainer: the same rows and arguments, and a mask of the weights that may change.

    python examples/from_dpo_trainer.py MODEL PAIRS.jsonl

With TRL the script reads:

    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=model,
        ref_model=None,
        args=DPOConfig("out", beta=0.1, learning_rate=5e-6, max_steps=4, report_to="none"),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()

`DPOConfig` is taken here, too; plain `TrainingArguments` do without TRL.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from allo import ImproveTrainer, locate


def train(model_folder, pairs, out):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)

    # New: find the 5% of the weights that a short DPO run of all weights changes most. The model is as before afterwards.
    short = TrainingArguments(f"{out}/locate", learning_rate=1e-5, max_steps=4, report_to="none")
    mask = locate(model, short, pairs, tokenizer, density=0.05)
    mask.save(f"{out}/mask.safetensors")

    # As DPOTrainer, but for `mask` and `keep`. The reference costs the mask's weights, not a second model.
    trainer = ImproveTrainer(
        model=model,
        args=TrainingArguments(f"{out}/improve", learning_rate=5e-6, max_steps=4, report_to="none"),
        train_dataset=pairs,  # prompt, chosen, rejected
        processing_class=tokenizer,
        mask=mask,
        beta=0.1,
        keep=0.5,  # the share of a rejected answer's tokens to learn from; 1.0 is plain DPO
    )
    trainer.train()
    model.save_pretrained(f"{out}/model")
    tokenizer.save_pretrained(f"{out}/model")
    return trainer


if __name__ == "__main__":
    folder, file = sys.argv[1:]
    train(folder, [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()], "out")
