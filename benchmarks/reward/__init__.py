"""A reward model trained on preference pairs."""
