"""A GGUF file as the base of a delta: it is converted as a run does it."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from allo.cli import app
from allo.models.load import load_model, load_tokenizer
from allo.models.start import save_whole
from gguf_file import make

pytest.importorskip("gguf")


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["delta", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_delta_of_a_run_applies_to_the_gguf_file_that_the_run_began_with(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = make(tmp_path / "base.gguf")
    model = load_model(base, dtype=dtype, device="cpu")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :5] += 1
    save_whole(model, load_tokenizer(base), tmp_path / "tuned")
    call("extract", base, tmp_path / "tuned", tmp_path / "delta.safetensors")
    said = call("apply", base, tmp_path / "delta.safetensors", tmp_path / "out")
    assert "a GGUF file, converted as a run does it" in said
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("tuned", "out")]
    assert files[0] == files[1]
    assert load_tokenizer(tmp_path / "out").get_vocab() == load_tokenizer(base).get_vocab()
