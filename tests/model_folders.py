"""Small model folders that a test may damage: a random Llama with the laboratory's tokenizer."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def plain(folder: Path, **config: Any) -> Path:
    """Save a tiny model and the laboratory's tokenizer."""
    tiny.model(**config).save_pretrained(folder)
    tiny.TOKENIZER.save_pretrained(folder)
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / WEIGHTS))


def write(folder: Path, tensors: Mapping[str, Tensor], name: str = WEIGHTS) -> None:
    save_file(dict(tensors), folder / name, metadata={"format": "pt"})


def shards(folder: Path, *, keep_single: bool = False) -> None:
    """Put the weights into two shards under an index, in place of `model.safetensors` or beside it."""
    tensors = tensors_of(folder)
    where = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(where.values()):
        write(folder, {name: tensors[name] + 1 for name in tensors if where[name] == file}, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    if not keep_single:
        (folder / WEIGHTS).unlink()


def edit(folder: Path, file: str, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: each for key, each in value.items() if each is not None}))


def copy_of(folder: Path, out: Path) -> Path:
    return Path(shutil.copytree(folder, out))
