"""A script of TRL's DPOTrainer in which two lines have changed: an import, and the class's name.

    python examples/from_dpo_trainer.py MODEL PAIRS.jsonl OUT

In TRL, these two lines are:

    from trl import DPOTrainer
    trainer = DPOTrainer(

A tenth of the weights trains, which a short run on the same pairs locates first; `mask` is the share, a criterion or a
file. docs/migrating.md maps every other argument.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig

from allo import ImproveTrainer


def main(model, file, out):
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    pairs = Dataset.from_list(rows)  # prompt, chosen, rejected: text or messages
    args = DPOConfig(
        output_dir=out,
        beta=0.1,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        max_steps=4,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        bf16=torch.cuda.is_available(),
        report_to="none",
    )
    trainer = ImproveTrainer(
        model=model,
        ref_model=None,
        args=args,
        train_dataset=pairs,
        eval_dataset={"first": pairs.select(range(4))},
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    trainer.save_model(f"{out}/model")
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
