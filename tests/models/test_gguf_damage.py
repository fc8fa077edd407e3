"""A damaged GGUF file is refused in one sentence, and numbers that are none are named by tensor."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from allo.errors import UserError
from allo.models.load import load_model, load_tokenizer, read_config
from gguf_file import make

gguf = pytest.importorskip("gguf")


def load(path: Path) -> None:
    load_model(path, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("gguf") / "good.gguf")


def test_the_undamaged_file_is_the_model(good: Path) -> None:
    loaded = load_model(good, dtype=torch.float32, device="cpu")
    assert torch.equal(loaded.model.norm.weight, tiny.model().model.norm.weight)
    assert load_tokenizer(good).eos_token_id == tiny.TOKENIZER.eos_token_id


def test_a_header_is_read_once_for_each_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run uses it: checks of tokenizer and configuration, then both again with the model."""
    path, made = make(tmp_path / "model.gguf"), []

    class Counted(gguf.GGUFReader):
        def __init__(self, *given: Any) -> None:
            made.append(given)
            super().__init__(*given)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    tokenizer, config = load_tokenizer(str(path)), read_config(str(path))
    tokenizer.pad_token, config.num_hidden_layers = "mine", 7
    load(path)
    again = load_tokenizer(path)
    assert again.pad_token != "mine" and read_config(path).num_hidden_layers == 2
    assert len(made) <= 3  # configuration, tokenizer, tensors
    make(path, rope_freq_base=5e5)
    assert read_config(path).rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_named_by_tensor(tmp_path: Path, value: float) -> None:
    bad = np.ones((24, 16), dtype=np.float32)
    bad[5, 3] = value
    path = make(tmp_path / "bad.gguf", tensors={"blk.1.ffn_up.weight": bad})
    with pytest.raises(
        UserError, match=rf"{path}: tensor model\.layers\.1\.mlp\.up_proj\.weight has 1 of 384"
    ):
        load(path)


def test_a_tensor_that_lies_elsewhere_is_refused(good: Path, tmp_path: Path) -> None:
    """Its offset leads into text or past the end."""
    raw = good.read_bytes()
    place = raw.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8 + 4
    for offset in (2**62, 10**9, len(raw) - 8):
        path = tmp_path / "bad.gguf"
        path.write_bytes(raw[:place] + struct.pack("<Q", offset) + raw[place + 8 :])
        with pytest.raises(UserError, match=str(path)):
            load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding_length": 0},
        {"head_count": 0},
        {"head_count_kv": 0},
        {"block_count": 0},
        {"block_count": 5},
        {"embedding_length": 17},
        {"feed_forward_length": 25},
        {"vocab_size": 4},
    ],
)
def test_a_header_of_another_model_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    path = make(tmp_path / "bad.gguf", **changes)
    with pytest.raises(UserError, match=str(path)):
        load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": 10**6},
        {"bos_token_id": 2**32 - 1},
        {"token_list": ["a", "a", "b"], "token_scores": [0.0] * 3},
        {"token_merges": ["absent token"]},
        {"token_merges": ["one", "two three four"]},
        {"token_list": []},
    ],
)
def test_a_tokenizer_of_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = make(tmp_path / "bad.gguf", **changes)
    with pytest.raises(UserError, match=str(path)):
        load_tokenizer(path)


def test_a_file_cut_anywhere_is_refused(good: Path, tmp_path: Path) -> None:
    raw, path = good.read_bytes(), tmp_path / "cut.gguf"
    for length in (0, 3, 4, 23, 24, 100, 1000, len(raw) // 2, len(raw) - 4):
        path.write_bytes(raw[:length])
        with pytest.raises(UserError, match=r"cut\.gguf"):
            load(path)


@pytest.mark.slow
def test_no_damage_of_a_header_ends_in_a_traceback(good: Path, tmp_path: Path) -> None:
    raw, path = good.read_bytes(), tmp_path / "bad.gguf"
    end = raw.index(b"blk.1.ffn_up.weight")
    readers: list[Callable[[Path], object]] = [load, load_tokenizer, read_config]
    refusals = []
    for seed in range(150):
        source, damaged = random.Random(seed), bytearray(raw)
        for _ in range(source.choice([1, 1, 3])):
            damaged[source.randrange(end)] = source.randrange(256)
        path.write_bytes(damaged)
        for read in readers:
            try:
                read(path)
            except UserError as error:
                refusals.append(str(error))
    assert len(refusals) > 100 and all(str(path) in refusal for refusal in refusals)
