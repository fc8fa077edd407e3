"""`allo run` looks at the model before its first stage: nothing is written of what it refuses."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from allo import cli
from allo.files.artifacts import write_json
from allo.tokens.rewrite_wording import WORDING
from allo.tokens.rewriter import RECORD, SCHEMA, tokenizer_hash
from allo.weights.checkpoints import ADAPTER
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


def without_a_weight(folder: Path) -> None:
    tensors = tensors_of(folder)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    write(folder, tensors)


def a_body_without_a_weight(folder: Path) -> None:
    """Under names that leave out the body's prefix."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors_of(folder).items()}
    del tensors["norm.weight"]
    write(folder, tensors)


def without_a_head(folder: Path) -> None:
    """The configuration says that the head is a weight of its own."""
    edit(folder, "config.json", tie_word_embeddings=False)


def not_finite(folder: Path) -> None:
    tensors = tensors_of(folder)
    write(folder, tensors | {"model.norm.weight": tensors["model.norm.weight"] * float("inf")})


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
        (without_a_weight, ["1 weights", "missing", "model.layers.0.mlp.up_proj.weight"]),
        (a_body_without_a_weight, ["1 weights", "missing", "first: norm.weight"]),
        (without_a_head, ["1 weights", "missing", "lm_head.weight"]),
        (not_finite, ["tensor model.norm.weight has 16 of 16 entries that are NaN or infinite"]),
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


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shards(folder, keep_single=True), ["twice", "Keep one"]),
        (int8, ["model.norm.weight is stored as int8", "dense original"]),
        (without_a_weight, ["1 weights", "missing", "model.layers.0.mlp.up_proj.weight"]),
        (not_finite, ["tensor model.norm.weight has 16 of 16 entries that are NaN or infinite"]),
        (larger_tokenizer, ["'<tool_call>'", "no embedding"]),
        (lambda folder: (folder / ADAPTER).write_text("{}"), ["adapter", "merge_and_unload"]),
    ],
)
def test_so_is_a_reward_model_that_cannot_judge(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    words: list[str],
) -> None:
    judge = tiny.reward_model(tmp_path / "judge")
    damage(judge)
    said = refused(monkeypatch, capsys, tmp_path, f"judge={{reward_model: {judge}}}")
    assert all(word in said for word in [*words, str(judge)]), said


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_a_weight, ["1 weights", "missing", "model.layers.0.mlp.up_proj.weight"]),
        (not_finite, ["tensor model.norm.weight has 16 of 16 entries that are NaN or infinite"]),
        (
            lambda folder: plain(folder, vocab_size=len(tiny.TOKENIZER) - 1),
            ["no embedding", f"vocab_size is {len(tiny.TOKENIZER) - 1}"],
        ),
    ],
)
def test_so_is_a_rewriter_that_cannot_score(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    words: list[str],
) -> None:
    rewriter = plain(tmp_path / "rewriter")
    record = {"wording": WORDING, "model": "m", "max_length": 4096, "dtype": "float32", "schema": SCHEMA}
    write_json(rewriter / RECORD, record | {"tokenizer": tokenizer_hash(tiny.TOKENIZER)})
    damage(rewriter)
    scorer = f"score={{scorer: rewriter, rewriter: {rewriter}}}"
    said = refused(monkeypatch, capsys, tmp_path, scorer)
    assert all(word in said for word in [*words, str(rewriter)]), said


def test_so_is_a_folder_of_which_vllm_would_read_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    folder = plain(tmp_path / "model", max_position_embeddings=128)
    write(folder, tensors_of(folder), "consolidated.safetensors")
    as_it_lies = (f"model={folder}", "sft=null", "dtype=float32")
    said = refused(monkeypatch, capsys, tmp_path, *as_it_lies, "sample.backend=vllm")
    assert f"{folder}: vLLM could read consolidated.safetensors in place of model.safetensors" in said


@pytest.mark.parametrize("override", ["device=meta", "device=''", "model=''"])
def test_a_device_or_a_model_that_is_none_is_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    said = refused(monkeypatch, capsys, tmp_path, override)
    assert override.split("=")[0] in said


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str
) -> str:
    short = ("evaluate.max_new_tokens=8", "sample.max_new_tokens=8")
    monkeypatch.setattr(sys, "argv", ["allo", *arguments("run", folder / "runs", *overrides, *short)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and "Traceback" not in said, said
    assert not list((folder / "runs").glob("*/0*")), "it began before it looked"
    return said
