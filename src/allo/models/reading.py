"""Configurations and tokenizers as transformers reads them; the header of a GGUF file is read once."""

import copy
import functools
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from allo.console import say
from allo.models.tokenizer_checks import check_tokenizer


def read_checked(auto: Any, ref: str | Path, folder: Path, gguf: str | None, trust_remote_code: bool) -> Any:
    """Read with AutoConfig or AutoTokenizer, and check what is a tokenizer.

    A GGUF file is read again only if it changed: the header of a vocabulary of 262,000 tokens takes 15 seconds.
    """
    if gguf is None:
        return _read(auto, ref, folder, gguf, trust_remote_code)
    found = (folder / gguf).stat()
    state = (found.st_ino, found.st_size, found.st_mtime_ns)
    return copy.deepcopy(_remembered(auto, folder / gguf, folder, gguf, trust_remote_code, state))


def _read(
    auto: Any, ref: str | Path, folder: Path, gguf: str | None, trusts: bool, state: tuple[int, ...] = ()
) -> Any:
    if gguf is not None:
        what = "tokenizer" if auto is AutoTokenizer else "configuration"
        say(f"{folder / gguf}: reading the {what} of a GGUF file, which takes some seconds ...")
    found = auto.from_pretrained(folder, gguf_file=gguf, trust_remote_code=trusts)
    if auto is AutoTokenizer:
        check_tokenizer(found, ref)  # a copy lacks what is wrong
    return found


_remembered = functools.lru_cache(maxsize=4)(_read)
