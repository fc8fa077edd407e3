"""Completions sampled in batches, each a pure function of the prompts, the settings, the seed and its number."""

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from allo.sampling.decode import decode
from allo.sampling.draw import draw, take_most_probable

WAVES = 4  # a batch has this many times the rows that are decoded together
REPLACEMENT = "\ufffd"  # stands for bytes that form no whole character
LONGEST_CHARACTER = 4  # bytes in UTF-8


@dataclass(frozen=True)
class Generated:
    """Completion number `index` of `prompts[prompt]`.

    `finished`: an end id or a stop string ended it. `text` leaves these out but keeps other special tokens. `token_ids`
    are the sampled ids, up to and with the token that ended it.
    """

    prompt: int
    index: int
    text: str
    finished: bool
    token_ids: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Batch:
    """All completions of a batch's prompts, in the order of (prompt, index)."""

    number: int
    samples: list[Generated]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    num_generations: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stop: list[str],
    seed: int,
    batch_size: int,
    turn_ends: Sequence[int] = (),
    numbers: Iterable[int] | None = None,
) -> Iterator[Batch]:
    """Yield completions batch by batch, longest prompts first: the batches with these `numbers`, by default all.

    All prompts together determine the batches, and each is decoded by itself: it is the same whoever computes it, and
    after whichever others. A completion's random numbers follow from the seed, its prompt's place
    and its index, so the samples are the same for any batch size, except for rounding. Global random state
    is neither read nor changed. Only temperature and top-p shape the distribution, not the penalties or
    top-k of a generation_config.

    Args:
        prompts: each prompt's token ids, at least one (see `tokenization.prompt_ids`).
        temperature: 0 takes the most probable token each time; then `num_generations` must be 1.
        top_p: each token is drawn from the smallest set of tokens that has this probability.
        stop: a completion ends before the first of these strings, and is finished. They may be special tokens.
        turn_ends: further ids that end a completion (see `tokenization.turn_end_ids`).
        batch_size: rows decoded together, at least `num_generations`. A batch has WAVES times as many; they
            take the places of rows that end.
    """
    assert not model.training
    assert num_generations == 1 or temperature > 0
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    size = prompts_per_batch(num_generations, batch_size)
    eos = list(dict.fromkeys([*end_ids(model, tokenizer), *turn_ends]))
    choose = take_most_probable if temperature == 0 else partial(draw, temperature=temperature, top_p=top_p)

    for number in range(-(-len(prompts) // size)) if numbers is None else numbers:
        batch = order[number * size : (number + 1) * size]
        places = [(prompt, index) for prompt in batch for index in range(num_generations)]
        uniforms = torch.stack([_uniforms(seed, *place, num=max_new_tokens) for place in places])
        with torch.inference_mode():
            rows = decode(
                model,
                [prompts[i] for i in batch],
                uniforms.to(model.device),
                max_rows=batch_size,
                choose=choose,
                eos=eos,
                has_stopped=partial(_has_stopped, tokenizer, stop=stop) if stop else None,
            )
        samples = [
            Generated(prompt, index, *read(tokenizer, ids, eos=eos, stop=stop))
            for (prompt, index), ids in zip(places, rows, strict=True)
        ]
        yield Batch(number, sorted(samples, key=lambda sample: (sample.prompt, sample.index)))


def num_batches(num_prompts: int, *, num_generations: int, batch_size: int) -> int:
    """Return how many batches `generate` yields from batch 0 on."""
    return -(-num_prompts // prompts_per_batch(num_generations, batch_size))


def prompts_per_batch(num_generations: int, batch_size: int) -> int:
    """Return how many prompts a batch has: `WAVES` times as many as are decoded together."""
    return WAVES * max(1, batch_size // num_generations)


def _uniforms(seed: int, prompt: int, index: int, *, num: int) -> Tensor:
    """Return the [num] float32 in [0, 1) from which completion `index` of a prompt draws its tokens."""
    digest = hashlib.sha256(f"{seed}:{prompt}:{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(num, generator=generator)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a completion: the tokenizer's EOS first, then the generation config's others."""
    ids = model.generation_config.eos_token_id
    others = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return list(dict.fromkeys([tokenizer.eos_token_id, *others]))


def read(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], *, eos: list[int], stop: list[str]
) -> tuple[str, bool, list[int]]:
    """Return text, finished and token ids of one row of sampled ids."""
    stopped = _has_stopped(tokenizer, ids, stop=stop)
    if stopped:
        # Tokens after the one that completed a stop string depend on when it was noticed: drop them.
        length = bisect.bisect_left(
            range(len(ids)), True, key=lambda n: _has_stopped(tokenizer, ids[:n], stop=stop)
        )
        ids = ids[:length]
    text = _text(tokenizer, ids)
    starts = [text.find(string) for string in stop if string in text]
    ended = ids[-1] in eos
    body = _text(tokenizer, ids[:-1]) if ended else text
    return body[: min(starts, default=len(body))], stopped or ended, ids


def _has_stopped(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, stop: list[str]) -> bool:
    """Return whether the decoded ids contain a stop string, also if they break off within a character."""
    text = _text(tokenizer, ids)
    texts = [text]
    if text.endswith(REPLACEMENT):
        # With byte fallback, a tokenizer shows a whole run of bytes as unreadable if its end is cut off.
        texts += [_text(tokenizer, ids[:-n]) for n in range(1, LONGEST_CHARACTER)]
    return any(string in text for text in texts for string in stop)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
