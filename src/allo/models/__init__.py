"""Models of transformers: loaded, checked, and asked for log-probs; and text to token ids."""
