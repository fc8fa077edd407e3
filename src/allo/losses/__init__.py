"""Log-probs and losses as plain functions, and the one reduction that all of them use."""
