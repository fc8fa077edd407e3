"""Models of transformers: loading, checks and log-probs; and text to token ids."""
