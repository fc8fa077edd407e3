"""Training of a small reward model on preference pairs through TRL, with its accuracy on held-out pairs.

The model reads exactly what `judge.reward_model` will show it. `--frozen-layers` freezes the embeddings and this many
layers, which saves their backward pass. The baseline to beat prefers the longer answer.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from trl import RewardConfig, RewardTrainer

from allo.files.records import Pair
from allo.models.load import load_model, load_tokenizer, quiet
from allo.models.reward_model import RewardModel, judged_ids, load_reward_model
from allo.models.start import save_whole
from allo.stats.metrics import Estimate, wilson
from allo.tasks.pairs import read_pairs
from benchmarks.record import RESULTS, Record

TABLE = "reward-model"


def classifier(base: PreTrainedModel, *, pad_id: int) -> PreTrainedModel:
    """Put a head with one label on a causal model's body; the head's entries have variance 1 / (d + 1)."""
    config = base.config
    config.num_labels, config.pad_token_id = 1, pad_id
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        config, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.base_model.load_state_dict(base.base_model.state_dict())
    nn.init.normal_(model.score.weight, std=(config.hidden_size + 1) ** -0.5)
    return model


def freeze(model: PreTrainedModel, *, layers: int) -> None:
    """Freeze the embeddings and the first layers."""
    if layers:
        for part in (model.get_input_embeddings(), *model.base_model.layers[:layers]):
            part.requires_grad_(False)


def rows(pairs: list[Pair], tokenizer: Any, *, max_length: int) -> list[dict[str, list[int]]]:
    """Return both sides' token ids as the judge reads them."""

    def ids(pair: Pair, completion: str) -> list[int]:
        return judged_ids(tokenizer, pair.prompt, completion, max_length=max_length)[0]

    return [
        {"chosen_ids": ids(pair, pair.chosen), "rejected_ids": ids(pair, pair.rejected)} for pair in pairs
    ]


def train(model: PreTrainedModel, tokenizer: Any, data: list[dict[str, list[int]]], options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, quiet():
        settings = RewardConfig(
            output_dir=folder,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.0,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation,
            center_rewards_coefficient=0.01,
            max_length=None,
            seed=options.seed,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            bf16=options.bf16,
            use_cpu=options.device == "cpu",
            gradient_checkpointing=False,
        )
        RewardTrainer(
            model, args=settings, train_dataset=Dataset.from_list(data), processing_class=tokenizer
        ).train()


def accuracy(judge: RewardModel, data: list[dict[str, list[int]]], *, batch_size: int) -> Estimate:
    """Return how often the chosen answer has the higher reward, with Wilson's interval; a tie is an error."""
    ids = [row[side] for row in data for side in ("chosen_ids", "rejected_ids")]
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    rewards = [0.0] * len(ids)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        for place, reward in zip(places, judge.rewards([ids[one] for one in places]), strict=True):
            rewards[place] = reward
    return wilson([chosen > rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="base model: folder, hub id or GGUF file")
    parser.add_argument("--pairs", required=True, type=Path, help="preference pairs in one of TRL's formats")
    parser.add_argument("--save", required=True, type=Path, help="folder of the trained reward model")
    parser.add_argument("--train", type=int, default=700, help="pairs to train on")
    parser.add_argument("--held-out", type=int, default=150, help="pairs to measure on")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of prompt and completion")
    parser.add_argument("--frozen-layers", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--batch-size", type=int, default=2, help="pairs computed together")
    parser.add_argument("--accumulation", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where torch deems it safe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", default="reward-model", help="name of the record in benchmarks/results")
    return parser.parse_args()


def main() -> None:
    options = parse()
    record = Record(RESULTS / f"{options.record}.json", TABLE, device=options.device)
    tokenizer = load_tokenizer(options.model)
    pairs = read_pairs(options.pairs)
    random.Random(options.seed).shuffle(pairs)
    held_out = pairs[: options.held_out]
    data = pairs[options.held_out :][: options.train]
    base = load_model(options.model, dtype=torch.float32, device=options.device)
    model = classifier(base, pad_id=tokenizer.pad_token_id).to(base.device)
    del base
    freeze(model, layers=options.frozen_layers)
    start = time.perf_counter()
    train(model, tokenizer, rows(data, tokenizer, max_length=options.max_length), options)
    seconds = time.perf_counter() - start
    save_whole(model, tokenizer, options.save)
    judge = load_reward_model(options.save, dtype=torch.float32, device=options.device)
    found = accuracy(
        judge,
        rows(held_out, judge.tokenizer, max_length=options.max_length),
        batch_size=2 * options.batch_size,
    )
    longer = wilson([len(pair.chosen) > len(pair.rejected) for pair in held_out])
    record.write(
        [
            {
                "judge": name,
                "trained on, pairs": num,
                "held-out accuracy": {"value": one.value, "low": one.low, "high": one.high},
                "held out, pairs": one.num,
                "seconds": took,
            }
            for name, one, num, took in (
                ("reward model", found, len(data), round(seconds)),
                ("the longer answer", longer, 0, None),
            )
        ]
    )
    for name, one in (("reward model", found), ("the longer answer", longer)):
        print(f"{name}: {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] of {one.num} held-out pairs")


if __name__ == "__main__":
    main()
