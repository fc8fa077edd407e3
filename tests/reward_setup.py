"""A recipe whose samples a reward model ranks."""

import json
from itertools import islice
from pathlib import Path

import torch

from allo import tasks
from allo.files.records import Message, Prompt
from allo.models.reward_model import judged_ids, load_reward_model
from allo.recipe import Recipe
from tiny_run import tiny as tiny_recipe

NUM_PROMPTS = 10
# float32: what another batch changes by rounding, of rewards of about 1.
SAME_REWARD = 1e-5
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
QUICK = (
    "sft=null",
    "data.limit=null",
    "evaluate.kl=null",
    "score.scorer=edit",
    "score.beside=[advantage]",
    "sample.max_new_tokens=24",
    "evaluate.max_new_tokens=24",
)


def problems() -> list[Prompt]:
    return list(islice(tasks.load("planted_flaws", "train"), NUM_PROMPTS))


def ranked(inputs: Path, out: Path, *more: str) -> Recipe:
    """The tiny run on prompts without answers, measured on them and on a set that has answers."""
    sets = {
        "open": {"file": str(inputs / "open.jsonl")},
        "test": {"task": "planted_flaws", "split": "test", "limit": 2},
    }
    judge = {"reward_model": str(inputs / "judge"), "dtype": "float32", "batch_size": 4}
    return tiny_recipe(
        out,
        f"data={{file: {inputs / 'open.jsonl'}}}",
        f"judge={json.dumps(judge)}",
        f"evaluate.sets={json.dumps(sets)}",
        *QUICK,
        *more,
    )


def done(said: str) -> list[str]:
    """The stages that a run did, in order."""
    return [line.split()[0] for line in said.splitlines() if line.endswith("...")]


def direct(inputs: Path, prompt: str | list[Message], text: str) -> float:
    """A completion's reward, read alone."""
    judge = load_reward_model(inputs / "judge", dtype=torch.float32, device="cpu")
    return judge.rewards([judged_ids(judge.tokenizer, prompt, text, max_length=128)[0]])[0]
