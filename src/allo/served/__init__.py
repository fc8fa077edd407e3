"""Completions of a model that OpenAI-compatible servers have."""

from allo.served.completions import complete
from allo.served.replies import Asked, Settings, seed_of

__all__ = ["Asked", "Settings", "complete", "seed_of"]
