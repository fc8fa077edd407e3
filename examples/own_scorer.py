"""A scorer of your own: which tokens of a wrong answer are wrong?

A scorer gets a batch of wrong answers and returns a number for each token: 0 is wrong, 1 is right. This one doubts
numbers and signs, as far as the model itself does, and nothing else. A recipe names it by its file:

    score: {scorer: examples/own_scorer.py:doubted_arithmetic}
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import allo
from allo.tokens import Context, Scored, confidence

ARITHMETIC = set("0123456789+-*")


def doubted_arithmetic(rows: list[Scored], context: Context) -> list[list[float]]:
    """Return pi(y_t) of a number or a sign, and 1 of any other token."""
    scores = []
    for row, own in zip(rows, confidence(rows, context), strict=True):  # own: pi(y_t), one number a token
        texts = [context.tokenizer.decode([token]) for token in row.tokens.completion_ids]
        scores.append([p if set(text) & ARITHMETIC else 1.0 for p, text in zip(own, texts, strict=True)])
    return scores


if __name__ == "__main__":
    lab = Path(allo.__file__).parent / "lab"
    tokenizer, model = AutoTokenizer.from_pretrained(lab), AutoModelForCausalLM.from_pretrained(lab)
    prompt = "Problem: Tom has 12 pens. He buys 3 pens. He sells 5 pens. How many pens now?\n"
    wrong = {"prompt": prompt, "completion": "First 12 - 3 = 9. Then 9 - 5 = 4. The answer is 4."}

    [found] = allo.score(model, [wrong], tokenizer, scorer=doubted_arithmetic)
    for token, number, weight in zip(found.token_ids, found.scores, found.weights, strict=True):
        print(f"{tokenizer.decode([token]):<8} {number:.2f} {'forget' if weight else ''}")
