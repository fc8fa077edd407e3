"""Log-probs and losses, each a plain function, with one reduction for all."""
