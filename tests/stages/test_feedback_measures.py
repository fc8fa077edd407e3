"""Measures on held-out labelled completions, against a plain forward pass of the laboratory's model."""

from itertools import product

import pytest
import torch
from test_held_out_measures import BETA, PROMPTS, exchanging, moved, plain

from allo.files.records import Feedback
from allo.models.load import load_model, load_tokenizer
from allo.models.rows import counted_completions
from allo.stages.likelihood import measured_feedback
from tiny_run import LAB


def labelled() -> list[Feedback]:
    """One to two completions a prompt, mostly good."""
    rows = []
    for place, prompt in enumerate(PROMPTS):
        rows.append(
            Feedback(f"p{place}", prompt, f"The answer is {place + place % 7}.", label=place % 4 != 0)
        )
        if place % 3 == 0:
            text = f"First {place} + 3 = {place + 3}. So {place}."
            rows.append(Feedback(f"q{place}", prompt, text, label=place % 2 == 0, finished=False))
    return rows


def chance(scores: list[float], good: list[bool]) -> float:
    sides = (
        [score for score, label in zip(scores, good, strict=True) if label == wanted]
        for wanted in (True, False)
    )
    won = [(a > b) + 0.5 * (a == b) for a, b in product(*sides)]
    return sum(won) / len(won)


def test_the_measures_are_those_of_a_plain_forward_pass() -> None:
    model, tokenizer = load_model(LAB, dtype=torch.float32, device="cpu"), load_tokenizer(str(LAB))
    feedback = labelled()
    rows, _ = counted_completions(tokenizer, map(vars, feedback), max_length=128)
    start = [plain(model, row["prompt_ids"], row["completion_ids"]) for row in rows]
    own = {"beta": BETA, "max_length": 128, "seed": 5}
    at_start = measured_feedback(feedback, model, tokenizer, None, **own)
    before = moved(model)
    after = [plain(model, row["prompt_ids"], row["completion_ids"]) for row in rows]
    found = measured_feedback(feedback, model, tokenizer, exchanging(model, before), **own)

    good = [row.label for row in feedback]
    ratios = [now - then for now, then in zip(after, start, strict=True)]
    rewards = [BETA * float(ratio.sum()) for ratio in ratios]
    assert (found["num_good"], found["num_bad"], found["num_prompts"]) == (sum(good), 16 - sum(good), 12)
    assert found["reward_auc"]["value"] == pytest.approx(chance(rewards, good))
    assert 0 < found["reward_auc"]["low"] < found["reward_auc"]["value"] < found["reward_auc"]["high"] <= 1
    for measured, logps in ((at_start, start), (found, after)):
        means = [float(one.mean()) for one in logps]
        assert measured["likelihood_auc"]["value"] == pytest.approx(chance(means, good))
    for name, wanted in (("good", True), ("bad", False)):
        sides = [ratio for ratio, label in zip(ratios, good, strict=True) if label == wanted]
        answers = sum(float(ratio.sum()) for ratio in sides) / len(sides)
        tokens = torch.cat(sides).mean().item()
        assert found[name]["answer"]["value"] == pytest.approx(answers, abs=1e-4)
        assert found[name]["token"]["value"] == pytest.approx(tokens, abs=1e-5)
    assert at_start["reward_auc"] is at_start["good"] is at_start["bad"] is None


def test_without_a_bad_completion_nothing_is_compared() -> None:
    model, tokenizer = load_model(LAB, dtype=torch.float32, device="cpu"), load_tokenizer(str(LAB))
    before = moved(model)
    good = [row for row in labelled() if row.label]
    found = measured_feedback(
        good, model, tokenizer, exchanging(model, before), beta=BETA, max_length=128, seed=5
    )
    assert found["reward_auc"] is found["likelihood_auc"] is found["bad"] is None
    assert found["good"]["answer"]["low"] < found["good"]["answer"]["high"]
