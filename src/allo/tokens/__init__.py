"""Scorers of tokens, and the weights that follow from their scores for each token of a wrong completion."""
