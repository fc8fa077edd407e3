"""A tiny policy and tiny data on which whole training runs take a second."""

import gc
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import allo
from allo.models.collate import Batch, lay_out
from allo.models.load import load_tokenizer
from allo.training.arguments import training_arguments
from allo.training.selected_trainer import SelectedTrainer
from allo.weights.layout import Layout
from allo.weights.param_mask import ParamMask

LABORATORY = Path(allo.__file__).parent / "lab"
TOKENIZER: PreTrainedTokenizerBase = load_tokenizer(LABORATORY)
WORDS = sorted(word for word in TOKENIZER.get_vocab() if word.startswith(" ") and word[1:].isalpha())
# accelerate collects garbage when a run begins: without what the imports made that is half of a tiny run.
gc.freeze()

NUM_PAIRS = 16
SEED = 3
# Two epochs of four steps, every step logged, nothing saved, at a rate at which a tiny model learns.
EIGHT_STEPS = {
    "learning_rate": 1e-2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
}


def model(dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """A random Llama of about 10 000 weights with the laboratory's vocabulary, large enough steps apart to learn."""
    torch.manual_seed(0)
    settings = LlamaConfig(
        **{
            "vocab_size": len(TOKENIZER),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "bos_token_id": TOKENIZER.bos_token_id,
            "eos_token_id": TOKENIZER.eos_token_id,
            "pad_token_id": TOKENIZER.pad_token_id,
        }
        | config
    )
    return LlamaForCausalLM(settings).to(dtype)


def text(seed: int, length: int) -> str:
    return "".join(WORDS[(7 * seed + 13 * place + seed * place) % len(WORDS)] for place in range(length))


def pairs() -> list[dict[str, Any]]:
    """Preference pairs of unequal lengths."""
    return [
        {
            "prompt": "Problem:" + text(row, 2 + row % 5) + "?",
            "chosen": text(row + 100, 1 + (5 * row) % 7),
            "rejected": text(row + 200, 2 + (3 * row) % 11),
        }
        for row in range(NUM_PAIRS)
    ]


def pairs_of_prompts() -> list[dict[str, Any]]:
    """Pairs of five prompts with 1 to 5 of them, in mixed order; answers return in other pairs of their prompt."""
    rows = [
        {
            "prompt": "Problem:" + text(prompt, 2 + prompt) + "?",
            "chosen": text(100 + 10 * prompt + number % 2, 1 + (3 * number) % 5),
            "rejected": text(200 + 10 * prompt + number // 2, 2 + (prompt + number // 2) % 6),
        }
        for prompt in range(5)
        for number in range(prompt + 1)
    ]
    random.Random(0).shuffle(rows)
    return rows


def feedback() -> list[dict[str, Any]]:
    """Labelled completions of unequal lengths, two of three good, each with a prompt of its own."""
    return [
        {
            "prompt": pair["prompt"],
            "completion": pair["chosen" if number % 3 else "rejected"],
            "label": number % 3 != 0,
        }
        for number, pair in enumerate(pairs())
    ]


def wrongs() -> list[dict[str, Any]]:
    """Wrong completions of unequal lengths, a varying share of each one's tokens weighted."""
    rows = []
    for number, pair in enumerate(pairs()):
        length = len(TOKENIZER(pair["rejected"], add_special_tokens=False).input_ids) + 1
        weights = [float((number + place) % 3 != 0) for place in range(length)]
        rows.append({"prompt": pair["prompt"], "completion": pair["rejected"], "token_weights": weights})
    return rows


def in_one_row(rows: Sequence[tuple[list[int], list[int], list[int]]]) -> Batch:
    """Lay pairs of ids out as the trainers do: a row for each, all first answers before all second ones."""
    completions = [(prompt, sides[number]) for number in (0, 1) for prompt, *sides in rows]
    return lay_out(completions, 2 * list(range(len(rows))), pad_id=0)


def shapes(policy: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(param.shape) for name, param in policy.named_parameters()}


def full_mask(policy: PreTrainedModel) -> ParamMask:
    """Select every weight, under the names on disk."""
    return Layout.of(policy).full_mask()


def every_third(policy: PreTrainedModel) -> ParamMask:
    """Every third entry of each tensor but the last norm, which has none."""
    indices = {
        name: torch.arange(0, param.numel(), 3, dtype=torch.int32)
        for name, param in policy.named_parameters()
        if name != "model.norm.weight"
    }
    return ParamMask(indices, shapes=shapes(policy))


def arguments(folder: Path, **settings: Any) -> Any:
    return training_arguments(
        EIGHT_STEPS | settings, folder=folder, seed=SEED, device=torch.device("cpu"), key="test.training"
    )


def trained(
    kind: type[SelectedTrainer],
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    *,
    policy: PreTrainedModel | None = None,
    mask: ParamMask | Path | None = None,
    own: Mapping[str, Any] | None = None,
    **settings: Any,
) -> SelectedTrainer:
    """A trainer after its run; `own` goes to it, `settings` to its arguments."""
    policy = model() if policy is None else policy
    trainer = kind(
        policy,
        arguments(folder, **settings),
        rows,
        TOKENIZER,
        mask=every_third(policy) if mask is None else mask,
        **(own or {}),
    )
    trainer.train()
    return trainer


def logged(trainer: SelectedTrainer, name: str = "loss") -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def weights(policy: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in policy.named_parameters()}


def reward_model(
    folder: Path, *, labels: int = 1, pad: bool = True, template: str | None = None, **config: Any
) -> Path:
    """A random classifier on a tiny body, saved with the laboratory's tokenizer (`template`: of chats)."""
    torch.manual_seed(1)
    settings = model(num_labels=labels, **config).config
    settings.pad_token_id = TOKENIZER.pad_token_id if pad else None
    classifier = LlamaForSequenceClassification(settings)
    torch.nn.init.normal_(classifier.score.weight)
    classifier.save_pretrained(folder)
    tokenizer = load_tokenizer(LABORATORY)
    tokenizer.chat_template = template
    if not pad:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder
