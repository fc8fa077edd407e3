"""The laboratory's SFT model: `python scripts/train_lab_model.py` writes `src/allo/lab/` again.

It is a Llama of 0.63M weights and a word-level tokenizer, trained from scratch on `planted_flaws` demonstrations.
Half of them are flawed, and each is seen once. Training is seeded: the same versions on one thread of the same kind
of processor give the same files. `record.json` beside the weights records versions, processor and time.
"""

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allo.tasks import planted_flaws, planted_stories
from allo.tasks.planted_flaws import Demonstration

LAB = Path(__file__).parents[1] / "src" / "allo" / "lab"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIAL))
VOCABULARY_SAMPLE = 2000
"""Texts of each split that are read for words; every word of the task is in them many times over."""

MIX = {"train": 0.70, "reworded_train": 0.15, "unrelated_train": 0.15}
"""Shares of the fine-tuning texts. `reworded_train` is here alone: no alignment recipe uses it."""


@dataclass(frozen=True)
class Settings:
    """The training settings; each of `num_texts` texts is seen once."""

    num_texts: int = 48_000
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_share: float = 0.03
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0

    @property
    def num_batches(self) -> int:
        return math.ceil(self.num_texts / self.batch_size)


@dataclass(frozen=True)
class Text:
    """Token ids of BOS + prompt + completion + EOS, and the number of prompt tokens."""

    ids: list[int]
    prompt_length: int


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of words with their leading space, split by `planted_flaws.WORD`: decoding joins them
    unchanged.
    """
    found: set[str] = set()
    for split in planted_flaws.SPLITS:
        for demonstration in planted_flaws.demonstrations(split, size=VOCABULARY_SAMPLE):
            for text in (demonstration.prompt.prompt, demonstration.completion):
                found.update(planted_flaws.words(str(text)))
    numbers = [f" {n}" for n in range(planted_stories.LARGEST + 1)]
    vocabulary = [*SPECIAL, *numbers, *sorted(found - set(numbers))]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(planted_flaws.WORD.pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNK],
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def make_model(vocabulary_size: int) -> LlamaForCausalLM:
    """Make an untrained fp32 model."""
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=224,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def read_texts(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> list[list[Text]]:
    """Read the texts of each split of the mix."""
    return [
        _tokenize(
            tokenizer, list(planted_flaws.demonstrations(split, size=round(share * settings.num_texts)))
        )
        for split, share in MIX.items()
    ]


def batches(texts: list[list[Text]], settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches with the mix's shares and texts of similar length, in random order.

    ids [B, L] are right-padded; labels [B, L] int64 are -100 on prompt and padding.
    """
    rng = random.Random(settings.seed)
    num_batches = settings.num_batches
    by_length = [sorted(split, key=lambda text: (len(text.ids), rng.random())) for split in texts]
    order = list(range(num_batches))
    rng.shuffle(order)
    for i in order:
        batch = [
            text
            for split in by_length
            for text in split[i * len(split) // num_batches : (i + 1) * len(split) // num_batches]
        ]
        longest = max(len(text.ids) for text in batch)
        ids = torch.tensor([text.ids + [PAD] * (longest - len(text.ids)) for text in batch])
        labels = ids.clone()
        for row, text in enumerate(batch):
            labels[row, : text.prompt_length] = -100
            labels[row, len(text.ids) :] = -100
        yield ids, labels


def train(model: LlamaForCausalLM, texts: list[list[Text]], settings: Settings) -> None:
    """Make one pass with a linear warm-up and a cosine decay to zero; loss on completions only.

    Muon trains the matrices, with steps scaled to AdamW's; AdamW trains the embedding and the norms. Causal attention
    with right padding needs no attention mask: no token sees the padding after it.
    """
    num_steps = settings.num_batches
    num_warmup = max(1, round(settings.warmup_share * num_steps))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    started = time.perf_counter()
    for step, (ids, labels) in enumerate(batches(texts, settings)):
        progress = max(0.0, (step - num_warmup) / (num_steps - num_warmup))
        rate = min(1.0, (step + 1) / num_warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        learned = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[:, 1:][learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0 or step == num_steps - 1:
            print(
                f"step {step}/{num_steps} loss {loss.item():.4f} {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=LAB)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--num-texts", type=int, default=Settings.num_texts)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    options = parser.parse_args()
    settings = Settings(num_texts=options.num_texts, seed=options.seed)
    torch.set_num_threads(options.threads)
    torch.manual_seed(settings.seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters())} weights, {len(tokenizer)} words")
    texts = read_texts(tokenizer, settings)
    started, cpu_started = time.perf_counter(), time.process_time()
    train(model, texts, settings)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=48,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    record = {
        "made_by": "scripts/train_lab_model.py",
        "settings": settings.__dict__,
        "mix": MIX,
        "threads": options.threads,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "num_weights": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    (options.out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _tokenize(tokenizer: PreTrainedTokenizerFast, demonstrations: list[Demonstration]) -> list[Text]:
    prompt_ids = tokenizer([str(d.prompt.prompt) for d in demonstrations])["input_ids"]
    completion_ids = tokenizer([d.completion for d in demonstrations], add_special_tokens=False)["input_ids"]
    return [Text(p + c + [EOS], len(p)) for p, c in zip(prompt_ids, completion_ids, strict=True)]


if __name__ == "__main__":
    main()
