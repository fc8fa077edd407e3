"""The work given to every system: one policy, one list of pairs, one set of training settings."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

import allo
from allo.models.load import load_model, load_tokenizer
from allo.models.tokenization import tokenize
from allo.tasks import gsm8k

LABORATORY = Path(allo.__file__).parent / "lab"
SEED = 0
BETA = 0.1
LEARNING_RATE = 5e-6
WARM_UP_POOL = 64
# A Llama for trying out the code; the laboratory's vocabulary is smaller.
TOY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}

Pair = dict[str, str]


@dataclass(frozen=True)
class Work:
    """A policy, pairs and training settings, passed between processes as JSON.

    model: a checkpoint's folder or `.gguf` file, or the settings of a Llama with random weights.
    pairs: a JSON Lines file of `prompt`, `chosen`, `rejected`, in the order of training; the first step's pairs are a
        warm-up and are not measured.
    limit_gb: pretend that the GPU's memory has this size; None for all of it.
    """

    model: str | dict[str, Any]
    tokenizer: str
    pairs: str
    dtype: str = "bfloat16"
    device: str = "cpu"
    batch_size: int = 4
    accumulation: int = 2
    max_length: int = 512
    density: float = 0.05
    checkpointing: bool = False
    weight_decay: float = 0.0
    limit_gb: float | None = None

    @property
    def pairs_a_step(self) -> int:
        return self.batch_size * self.accumulation

    def load_policy(self) -> PreTrainedModel:
        """Load the model; its weights are resident, and the same each time."""
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        if isinstance(self.model, dict):
            return random_llama(self.model, dtype=dtype, device=device)
        policy = load_model(self.model, dtype=dtype, device=self.device)
        for param in policy.parameters():
            param.data = param.data.clone()  # out of the mapped file, whose pages count only once touched
        return policy

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.tokenizer)

    def load_pairs(self) -> list[Pair]:
        with open(self.pairs, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def training_settings(self) -> dict[str, Any]:
        """Return the fields of `transformers.TrainingArguments` that all systems share."""
        return {
            "seed": SEED,
            "use_cpu": self.device == "cpu",
            "num_train_epochs": 1,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "train_sampling_strategy": "sequential",
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "weight_decay": self.weight_decay,
            "activation_checkpointing": self.checkpointing,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "log_level": "error",
        }


@dataclass(frozen=True)
class Run:
    """A trainer ready to train, the number of weights it trains, and a function that stores the result in a folder."""

    trainer: Trainer
    num_trained: int
    save: Callable[[Path], Any]


# A system: makes a run from the work, the loaded policy and a folder for the trainer.
Build = Callable[[Work, PreTrainedModel, Path], Run]


def random_llama(settings: dict[str, Any], *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Build a Llama on `device`, in eval mode; the same weights each time."""
    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**settings)).eval()
    finally:
        torch.set_default_dtype(before)


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def gsm8k_pairs(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, steps: int, pairs_a_step: int, max_length: int
) -> list[Pair]:
    """Return the pairs of a warm-up step, the shortest of a later pool, and of `steps` measured steps.

    A rejected solution is alternately the chosen one with other numbers and the next problem's. All fit into
    `max_length` tokens. Raises `UserError` if `folder` has no `gsm8k`.
    """
    problems = islice(gsm8k.load("train", folder=folder), 4 * (steps * pairs_a_step + WARM_UP_POOL))
    texts = [(str(problem.prompt), str(problem.solution)) for problem in problems]
    pairs = []
    for place, ((prompt, solution), (_, another)) in enumerate(pairwise(texts)):
        wrong = another if place % 2 else other_numbers(solution)
        pair = {"prompt": prompt, "chosen": solution, "rejected": wrong}
        if longest(tokenizer, pair) <= max_length:
            pairs.append(pair)
    measured = pairs[: steps * pairs_a_step]
    rest = pairs[len(measured) :][:WARM_UP_POOL]
    warm_up = sorted(rest, key=lambda pair: longest(tokenizer, pair))[:pairs_a_step]
    assert len(measured) + len(warm_up) == (steps + 1) * pairs_a_step, f"too few problems in {folder}"
    return warm_up + measured


def longest(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> int:
    """Count the tokens of the prompt with its longer completion."""
    sides = [
        tokenize(tokenizer, pair["prompt"], pair[side], max_length=1 << 20) for side in ("chosen", "rejected")
    ]
    return max(len(side.prompt_ids) + len(side.completion_ids) for side in sides if side is not None)


def other_numbers(text: str) -> str:
    """Raise each number in the text by one to nine, the same way each time."""
    rng = random.Random(text)
    return re.sub(r"\d+", lambda number: str(int(number[0]) + rng.randint(1, 9)), text)


def random_pairs(*, number: int, prompt: int, completion: int, a_prompt: int = 1) -> list[Pair]:
    """Return pairs of random words of the laboratory's vocabulary, one token per word; lengths in tokens, EOS
    included. `a_prompt` pairs in a row have one prompt.
    """
    words = sorted(word for word in load_tokenizer(LABORATORY).get_vocab() if re.fullmatch(r" [a-z]+", word))
    rng = random.Random(SEED)

    def text(length: int) -> str:
        return "".join(rng.choices(words, k=length))

    pairs: list[Pair] = []
    for place in range(number):
        before = pairs[-1]["prompt"] if place % a_prompt else text(prompt - 1)
        pairs.append({"prompt": before, "chosen": text(completion - 1), "rejected": text(completion - 1)})
    return pairs
