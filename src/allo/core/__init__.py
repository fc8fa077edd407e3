"""Pure functions and small classes on tensors: no recipe, no transformers."""
