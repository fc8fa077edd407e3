"""`allo run` looks at the model before its first stage: nothing is written of what it refuses."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from allo import cli
from allo.checkpoints import ADAPTER
from model_folders import edit, plain, shards, tensors_of, write
from tiny_run import arguments

Damage = Callable[[Path], None]


def int8(folder: Path) -> None:
    tensors = tensors_of(folder)
    write(folder, tensors | {"model.norm.weight": tensors["model.norm.weight"].to(torch.int8)})


def larger_tokenizer(folder: Path) -> None:
    tokenizer = type(tiny.TOKENIZER).from_pretrained(folder)
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save_pretrained(folder)


def few_positions(folder: Path) -> None:
    (folder / "config.json").unlink()
    config = GPT2Config(vocab_size=len(tiny.TOKENIZER), n_positions=120, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shards(folder, keep_single=True), ["twice", "Keep one"]),
        (int8, ["model.norm.weight is stored as int8", "dense original"]),
        (
            lambda folder: edit(folder, "config.json", quantization_config={"quant_method": "fp8"}),
            ["quantised", "fp8"],
        ),
        (
            lambda folder: edit(folder, "config.json", num_hidden_layers=1),
            ["no place for tensor", "layers.1"],
        ),
        (lambda folder: edit(folder, "config.json", num_attention_heads=0), ["num_attention_heads: 0"]),
        (lambda folder: (folder / ADAPTER).write_text("{}"), ["adapter", "merge_and_unload"]),
        (larger_tokenizer, ["'<tool_call>'", "no embedding"]),
        (few_positions, ["max_length is 128", "120 positions", "set max_length to 120"]),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_the_first_stage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    words: list[str],
) -> None:
    folder = plain(tmp_path / "model", max_position_embeddings=128)
    damage(folder)
    said = refused(monkeypatch, capsys, tmp_path, f"model={folder}")
    assert all(word in said for word in [*words, str(folder)]), said


@pytest.mark.parametrize("override", ["device=meta", "device=''", "model=''"])
def test_a_device_or_a_model_that_is_none_is_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    said = refused(monkeypatch, capsys, tmp_path, override)
    assert override.split("=")[0] in said


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, override: str
) -> str:
    short = ("evaluate.max_new_tokens=8", "sample.max_new_tokens=8")
    monkeypatch.setattr(sys, "argv", ["allo", *arguments("run", folder / "runs", override, *short)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and "Traceback" not in said, said
    assert not list((folder / "runs").glob("*/0*")), "it began before it looked"
    return said
