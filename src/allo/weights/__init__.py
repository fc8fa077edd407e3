"""Importance scores, exact selection, masks, the selected weights in training, and weights on disk."""
