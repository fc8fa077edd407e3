"""Tensors with more entries than int32 numbers: refused where an index would wrap around, served where none does."""

from pathlib import Path

import pytest
import torch
from test_delta import folder_of

from allo.delta import extract, read_delta
from allo.errors import UserError
from allo.weights import sparse_file
from allo.weights.param_mask import ParamMask

LIMIT = 16


def test_only_a_change_beyond_the_reach_of_int32_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A small reach instead of tensors of 8 GB.
    monkeypatch.setattr(sparse_file, "REACH", LIMIT)
    base = {"big.weight": torch.zeros(LIMIT + 4)}
    folder_of(tmp_path / "base", base)
    for place, name in ((LIMIT - 1, "near"), (LIMIT, "far")):
        tuned = {"big.weight": base["big.weight"].clone()}
        tuned["big.weight"][place] = 1
        folder_of(tmp_path / name, tuned)
    extract(tmp_path / "base", tmp_path / "near", tmp_path / "near.delta")
    assert read_delta(tmp_path / "near.delta").indices["big.weight"].tolist() == [LIMIT - 1]
    with pytest.raises(UserError, match=r"big\.weight: entry 16 .* end at 15.*whole model"):
        extract(tmp_path / "base", tmp_path / "far", tmp_path / "far.delta")
    assert not (tmp_path / "far.delta").exists()


def test_a_full_mask_of_a_tensor_beyond_int32_is_refused_before_its_indices_are_made() -> None:
    # Gemma 3n's embeddings by layer; their indices alone would take 9 GB.
    with pytest.raises(UserError, match=r"embed_tokens_per_layer.*2,348,810,239.*2,147,483,647"):
        ParamMask.full({"embed_tokens_per_layer.weight": (262144, 8960)})
