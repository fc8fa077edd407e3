"""Which weights: importance, exact selection, the mask, the selected weights that train; and weights on disk."""
