"""A model of which only the size is known: the shape of a typical Llama."""

import json
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from allo.errors import UserError

_HEAD, _KEY_HEADS, _VOCABULARY, _TIED_BELOW = 128, 8, 128_256, 4 * 10**9
_RATIO = 3.5  # of the intermediate size to the hidden size
_LEAST, _MOST = 10**8, 2 * 10**12
_UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


def parse_weights(text: str) -> int:
    """Return the number of weights of a size such as 8B or 135M. Raises `UserError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MBT])", text.strip().upper())
    number = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    if not _LEAST <= number <= _MOST:
        raise UserError(
            f"--size {text}: give a number of weights from 100M to 2T, such as 8B; for a smaller model give --model."
        )
    return number


def shape_of(weights: int) -> dict[str, Any]:
    """Return the configuration of a Llama of about `weights` weights.

    It has H heads of 128 (3 to 8, or a multiple of 4), so a hidden size h = 128 H, and L layers; k heads of keys and
    values (H up to 8, otherwise 8 or 4, whichever divides H); and a vocabulary of V = 128,256, whose two matrices are one below 4 billion weights. So it
    has V h (twice if not tied) + L (2 h^2 + 2 * 128 k h + 3 h i) weights. The intermediate size i, a multiple of 64,
    takes up what is left. H and L are those for which L is nearest to H, as in Llama 7B, 8B and 13B, and i to 3.5 h:
    the sum of both relative differences is least.
    """
    tied = weights < _TIED_BELOW

    def intermediate(heads: int, layers: int) -> float:
        hidden = _HEAD * heads
        attention = 2 * hidden**2 + 2 * _HEAD * hidden * _key_heads(heads)
        rest = weights - _VOCABULARY * hidden * (1 if tied else 2) - layers * attention
        return rest / (3 * hidden * layers)

    def strangeness(shape: tuple[int, int]) -> float:
        heads, layers = shape
        ratio = intermediate(heads, layers) / (_HEAD * heads)
        return abs(layers / heads - 1) + abs(ratio / _RATIO - 1) + (ratio < 1)

    shapes = (
        (heads, layers) for heads in (*range(3, 8), *range(8, 400, 4)) for layers in range(1, 2 * heads)
    )
    heads, layers = min(shapes, key=strangeness)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HEAD * heads,
        "intermediate_size": max(64, 64 * round(intermediate(heads, layers) / 64)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _key_heads(heads),
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": tied,
    }


def _key_heads(heads: int) -> int:
    return heads if heads < _KEY_HEADS else math.gcd(heads, _KEY_HEADS)


def words(shape: dict[str, Any]) -> str:
    """Return a shape in words."""
    return (
        f"a Llama of {shape['num_hidden_layers']} layers, hidden size {shape['hidden_size']:,}, intermediate size "
        f"{shape['intermediate_size']:,}, {shape['num_key_value_heads']} heads of keys and values, a vocabulary of "
        f"{shape['vocab_size']:,}{' (tied)' if shape['tie_word_embeddings'] else ''}"
    )


@contextmanager
def folder_of(shape: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder with a configuration alone, while it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        yield Path(folder)
