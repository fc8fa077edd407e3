"""Kinds of training data, which scorers, losses and trainers say that they see."""

KINDS = ("solutions", "right samples", "wrong samples", "rewards")
SOLUTIONS, RIGHT, WRONG, REWARDS = KINDS
PAIRS = frozenset({RIGHT, WRONG})
