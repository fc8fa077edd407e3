"""The properties that a family must have, each a function of one family's folder.

A check returns a remark, or "", if its property holds. It raises `WrongError` with a figure otherwise. A refusal is
a `UserError`, and any other exception is a crash (`outcome.py`). The reference is always transformers alone: a plain
forward pass in fp32 of one row without padding, and `generate` of one prompt.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from allo.models.collate import Batch, lay_out, pad
from allo.models.load import load_model, load_tokenizer, model_of_config, read_config
from allo.models.policy import per_token_logps, shares_prefix
from allo.models.shared_prompts import can_share
from allo.plan import plan_stage
from allo.plan.live_bytes import LiveBytes
from allo.plan.training import take_a_step
from allo.sampling.decode import decode
from allo.sampling.draw import take_most_probable
from allo.training.arguments import training_arguments
from allo.training.locating import locate
from allo.training.trainer import ImproveTrainer
from benchmarks.families.families import Family
from benchmarks.families.folders import plain_model
from benchmarks.families.outcome import WrongError, require
from benchmarks.families.tiny_recipe import recipe_of, tiny_pairs

TOLERANCE = 1e-4  # nats a token
TIE = 1e-3  # two logits this close may change places by rounding
NEAR = 0.15  # of the measured peak
NEW_TOKENS, COPIES = 14, 3
WORDS = range(3, 160)  # ids of the laboratory's words


@dataclass
class Case:
    """One family's checkpoint in fp32 and a folder for what the checks write."""

    family: Family
    folder: Path
    work: Path

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model as allo loads it."""
        return load_model(self.folder, dtype=torch.float32, device="cpu")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder)

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The model as transformers alone loads it."""
        return plain_model(self.family, self.folder)

    @property
    def ends(self) -> list[int]:
        """The ids that end a completion."""
        found = self.plain.generation_config.eos_token_id
        return found if isinstance(found, list) else [found]


def random_ids(*lengths: int) -> list[list[int]]:
    """Return lists of token ids of these lengths, the same on every machine."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(WORDS.start, WORDS.stop, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def plain_logps(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Return the log-probs of a completion's tokens from one row without padding."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
    logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(completion)[:, None])[:, 0]


def _triples() -> list[tuple[list[int], list[int], list[int]]]:
    """Return prompts with two completions, all of different lengths, some beyond every window."""
    ids = random_ids(9, 5, 12, 31, 17, 3, 2, 8, 21)
    return [(ids[3 * n], ids[3 * n + 1], ids[3 * n + 2]) for n in range(3)]


def _largest_difference(case: Case, model: PreTrainedModel, batch: Batch) -> float:
    """Return the largest difference to the reference of all first, then all second completions."""
    with torch.no_grad():
        ours = per_token_logps(model, batch)
    sides = [(row[0], row[place]) for place in (1, 2) for row in _triples()]
    differences = [
        (ours[place, : len(completion)] - plain_logps(case.plain, prompt, completion)).abs().max()
        for place, (prompt, completion) in enumerate(sides)
    ]
    return float(torch.stack(differences).max())


def _padded() -> Batch:
    return pad(_completions(), pad_id=0)


def _completions() -> list[tuple[list[int], list[int]]]:
    return [(row[0], row[place]) for place in (1, 2) for row in _triples()]


def loads(case: Case) -> str:
    """Load model and tokenizer; the text part has the reference's weights."""
    theirs = {weight.data_ptr(): weight.numel() for weight in case.plain.parameters()}
    ours = {weight.data_ptr(): weight.numel() for weight in case.model.parameters()}
    assert case.tokenizer.eos_token_id is not None
    require(
        0 < sum(ours.values()) <= sum(theirs.values()),
        f"{sum(ours.values())} weights of {sum(theirs.values())}",
    )
    return f"{type(case.model).__name__}, {case.model.config.get_text_config()._attn_implementation}"


def padded_logps(case: Case) -> str:
    """Compute log-probs of padded rows."""
    return _near(_largest_difference(case, case.model, _padded()))


def shared_logps(case: Case) -> str:
    """Compute log-probs of rows with a shared prompt, if allo takes them."""
    if not shares_prefix(case.model):
        return "not shared"
    batch = lay_out(_completions(), 2 * list(range(len(_triples()))), pad_id=0)
    return _near(_largest_difference(case, case.model, batch), "shared")


def trained_logps(case: Case) -> str:
    """Compute log-probs in train mode, twice, after locating in memory and with the model as a trainer prepares it."""
    model = load_model(case.folder, dtype=torch.float32, device="cpu")
    settings = {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    arguments = training_arguments(
        settings, folder=case.work / "trainer", seed=0, device=torch.device("cpu"), key="improve.training"
    )
    pairs, given = tiny_pairs(4), {"processing_class": case.tokenizer, "max_length": 128}
    mask = locate(model, pairs, args=arguments, density=0.1, **given)
    trainer = ImproveTrainer(model, arguments, pairs, mask=mask, **given)
    trainer.model.train()
    first, second = (_largest_difference(case, trainer.model, _padded()) for _ in range(2))
    return _near(max(first, second))


def _near(difference: float, remark: str = "") -> str:
    require(difference <= TOLERANCE, f"log-probs differ by {difference:.2g}")
    return remark


def decodes(case: Case) -> str:
    """Decode greedily, several rows a prompt and prompts of different lengths in a batch, as `generate` does."""
    prompts = random_ids(6, 33, 11, 20, 2)
    uniforms = torch.full((len(prompts) * COPIES, NEW_TOKENS), 0.5)
    with torch.inference_mode():
        rows = decode(
            case.model,
            prompts,
            uniforms,
            max_rows=2 * COPIES,
            choose=take_most_probable,
            eos=case.ends,
            has_stopped=None,
        )
    for number, prompt in enumerate(prompts):
        copies = rows[number * COPIES : (number + 1) * COPIES]
        require(all(row == copies[0] for row in copies), f"copies of prompt {number} differ")
        _as_generated(case.plain, prompt, copies[0], number)
    return "shared" if can_share(case.model) else "not shared"


def _as_generated(model: PreTrainedModel, prompt: list[int], ours: list[int], number: int) -> None:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
    theirs = out[0, len(prompt) :].tolist()
    if ours == theirs:
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    if place < min(len(ours), len(theirs)):
        with torch.no_grad():
            before = torch.tensor([prompt + theirs[:place]])
            logits = model(input_ids=before, use_cache=False).logits[0, -1].float()
        if float(logits[theirs[place]] - logits[ours[place]]) < TIE:
            return
    raise WrongError(f"prompt {number} of {len(prompt)} tokens: differs from generate at token {place}")


def plans(case: Case) -> str:
    """Compare the planned peak of an improving step with the bytes of tensors alive in a real one."""
    recipe = recipe_of(case.folder, case.work, "plan")
    planned = plan_stage(recipe, "improve").total
    # Built like the planner's: its evenly spread masks name tensors as they are in memory.
    model = model_of_config(read_config(case.folder), dtype=torch.float32)
    model._weight_conversions = []
    with LiveBytes() as live:
        take_a_step(model, recipe, "improve", live, case.work / "plan")
    # Kept in host memory, and known by name only.
    measured = live.peak - live.at_peak["host"]
    ratio = planned / measured
    require(abs(ratio - 1) <= NEAR, f"planned {planned} bytes, measured {measured}: {ratio:.2f}")
    return f"{ratio:.3f}"
