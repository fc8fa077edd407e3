"""Models of the hub that are on this machine already."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache


def is_cached(ref: str, *, weights: bool) -> bool:
    """Return whether the hub's cache has a model's configuration and, if they are asked for, weights.

    Otherwise a person waits for a download, and sees the hub's own bars.
    """
    config = try_to_load_from_cache(ref, "config.json")
    return isinstance(config, str) and (not weights or any(Path(config).parent.glob("*.safetensors")))
