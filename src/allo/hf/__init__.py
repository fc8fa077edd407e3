"""The only rooms that know transformers."""
