"""Measures on held-out pairs, against a plain forward pass of the laboratory's model."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from allo.files.records import Pair
from allo.models.load import Model, Tokenizer, load_model, load_tokenizer
from allo.models.rows import counted_pairs
from allo.stages.likelihood import AtStart, likelihood, measured_pairs
from allo.stats.metrics import bootstrap, wilson
from tiny_run import LAB

BETA = 0.3
PROMPTS = [f"Tom has {number} pens and buys {number % 7} more. How many?\n" for number in range(12)]


def pairs_of(prompts: list[str]) -> list[Pair]:
    return [
        Pair(
            f"p{place}",
            prompt,
            f"First {place} + 3 = {place + 3}. The answer is {place + 3}.",
            f"The answer is {place}." + " So it is." * (place % 3),
            rejected_finished=place % 2 == 0,
        )
        for place, prompt in enumerate(prompts)
    ]


@pytest.fixture
def policy() -> tuple[Model, Tokenizer]:
    return load_model(LAB, dtype=torch.float32, device="cpu"), load_tokenizer(str(LAB))


def moved(model: Model) -> dict[str, torch.Tensor]:
    """Change the model a little; returns its weights before."""
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param += 0.01 * torch.randn(param.shape, generator=generator)
    return before


def exchanging(model: Model, other: dict[str, torch.Tensor]) -> AtStart:
    @contextmanager
    def exchanged() -> Iterator[None]:
        own = {name: param.detach().clone() for name, param in model.named_parameters()}
        model.load_state_dict(other, strict=False)
        yield
        model.load_state_dict(own, strict=False)

    return exchanged


@torch.no_grad()
def plain(model: Model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The log-probs of a completion's tokens, from the model's own logits of one unpadded row."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
    at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logps[at, ids[0, len(prompt) :]]


def both(model: Model, row: dict[str, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = (
        plain(model, row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")
    )
    return chosen, rejected


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_measures_are_those_of_a_plain_forward_pass(
    policy: tuple[Model, Tokenizer], repeats: int
) -> None:
    model, tokenizer = policy
    pairs = pairs_of([prompt for prompt in PROMPTS for _ in range(repeats)])
    rows, _ = counted_pairs(tokenizer, map(vars, pairs), max_length=128)
    start = [both(model, row) for row in rows]
    before = moved(model)
    after = [both(model, row) for row in rows]
    found = measured_pairs(
        pairs, model, tokenizer, exchanging(model, before), beta=BETA, max_length=128, seed=5
    )

    ratios = [[now - then for now, then in zip(*one, strict=True)] for one in zip(after, start, strict=True)]
    margins = [BETA * float(chosen.sum() - rejected.sum()) for chosen, rejected in ratios]
    right = [margin > 0 for margin in margins]
    likelier = [bool(chosen.sum() > rejected.sum()) for chosen, rejected in after]
    assert 0 < sum(right) < len(right)  # otherwise the test could not tell
    groups = [range(place, place + repeats) for place in range(0, len(pairs), repeats)]

    def grouped(values: list[list[float]]) -> dict[str, float]:
        return bootstrap([[x for at in group for x in values[at]] for group in groups], seed=5).figure

    def share(values: list[bool]) -> dict[str, float]:
        return wilson(values).figure if repeats == 1 else grouped([[float(each)] for each in values])

    assert (found["num_pairs"], found["num_prompts"], found["beta"]) == (12 * repeats, 12, BETA)
    assert found["reward_accuracy"] == pytest.approx(share(right))
    assert found["likelihood_accuracy"] == pytest.approx(share(likelier))
    assert found["margin"] == pytest.approx(grouped([[margin] for margin in margins]), abs=1e-4)
    for side, name in enumerate(("chosen", "rejected")):
        own = [ratio[side] for ratio in ratios]
        answers, tokens = grouped([[float(one.sum())] for one in own]), grouped([one.tolist() for one in own])
        assert found[name]["answer"] == pytest.approx(answers, abs=1e-4)
        assert found[name]["token"] == pytest.approx(tokens, abs=1e-5)
        levels = grouped([[float(one[side].sum())] for one in after])
        assert found[f"{name}_logp"] == pytest.approx(levels, abs=1e-3)


def test_held_out_pairs_and_the_pairs_of_a_run_have_one_measure(policy: tuple[Model, Tokenizer]) -> None:
    model, tokenizer = policy
    pairs = pairs_of(PROMPTS)
    before = moved(model)
    at_start = exchanging(model, before)
    found = measured_pairs(pairs, model, tokenizer, at_start, beta=BETA, max_length=128, seed=0)
    known = likelihood(pairs, model, tokenizer, at_start, max_length=128)
    assert known["num_pairs"] == found["num_pairs"]
    for side in ("chosen", "rejected"):
        assert known[side] == pytest.approx(found[side]["token"]["value"], rel=1e-6)


def test_the_start_has_only_its_likelihoods(policy: tuple[Model, Tokenizer]) -> None:
    model, tokenizer = policy
    pairs = pairs_of(PROMPTS)
    found = measured_pairs(pairs, model, tokenizer, None, beta=BETA, max_length=128, seed=0)
    rows, _ = counted_pairs(tokenizer, map(vars, pairs), max_length=128)
    sides = [both(model, row) for row in rows]
    expected = wilson([bool(chosen.sum() > rejected.sum()) for chosen, rejected in sides])
    assert found["likelihood_accuracy"] == pytest.approx(expected.figure)
    for side, name in enumerate(("chosen_logp", "rejected_logp")):
        level = bootstrap([[float(one[side].sum())] for one in sides], seed=0).figure
        assert found[name] == pytest.approx(level, abs=1e-3)
    assert [found[name] for name in ("reward_accuracy", "margin", "chosen", "rejected")] == [None] * 4


def test_pairs_that_do_not_fit_are_counted(policy: tuple[Model, Tokenizer]) -> None:
    model, tokenizer = policy
    pairs = [*pairs_of(PROMPTS[:3]), Pair("long", "Why?\n", "so " * 200, "no")]
    found = measured_pairs(pairs, model, tokenizer, None, beta=BETA, max_length=64, seed=0)
    assert (found["num_pairs"], found["num_dropped"]) == (3, 1)
