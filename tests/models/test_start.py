"""The start of a run: folders that can be used as they lie, and the record of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.models.load import load_model
from allo.models.start import is_ready, load_start, write_start
from allo.recipe import Recipe
from allo.stages import sft
from allo.weights.checkpoints import Checkpoint
from tiny import TOKENIZER, model


def recipe(folder: Path, **own: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny",
        "model": str(folder),
        "dtype": "float32",
        "device": "cpu",
        "data": {"pairs": "unused.jsonl"},
        "evaluate": {"sets": {"none": {"task": "planted_flaws"}}},
    }
    return Recipe.model_validate(fields | own)


def saved(policy: PreTrainedModel, folder: Path) -> Path:
    policy.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def started(folder: Path, path: Path) -> tuple[RunFolder, PreTrainedModel]:
    """The run below `path` after its first stage, and the model that the later ones load."""
    run = RunFolder(path)
    path.mkdir()
    sft.run(recipe(folder), run)
    return run, load_start(recipe(folder), run)[0]


def half_bare_gpt2(folder: Path) -> Path:
    """GPT-2 with the body's prefix on some names only."""
    torch.manual_seed(0)
    settings = GPT2Config(vocab_size=len(TOKENIZER), n_positions=32, n_embd=8, n_layer=1, n_head=2)
    saved(GPT2LMHeadModel(settings), folder)
    rewrite(folder, lambda tensors: {name.replace("transformer.ln", "ln"): t for name, t in tensors.items()})
    return folder


def doubled_llama(folder: Path) -> Path:
    """A tied Llama whose head was stored beside the embeddings."""
    saved(model(), folder)
    rewrite(
        folder, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    )
    return folder


def test_a_folder_under_other_names_is_stored_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = half_bare_gpt2(tmp_path / "model")
    assert is_ready(recipe(folder)) is None
    run, live = started(folder, tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"the run starts from the copy {run.start / 'model'}, and its masks and deltas are for that copy"
        in said
    )
    stored = Checkpoint.open(run.start / "model")
    assert stored.stored.keys() == {name for name, _ in live.named_parameters()}
    before = load_model(folder, dtype=torch.float32, device="cpu")
    for name, param in before.named_parameters():
        assert torch.equal(stored.read(name), param), name


def tied(folder: Path) -> Path:
    return saved(model(), folder)


def untied(folder: Path) -> Path:
    return saved(model(tie_word_embeddings=False), folder)


def twice_spelled(folder: Path) -> Path:
    """GPT-2 with a norm under its name with and without the body's prefix: which of them counts is not known."""
    torch.manual_seed(0)
    settings = GPT2Config(vocab_size=len(TOKENIZER), n_positions=32, n_embd=8, n_layer=1, n_head=2)
    saved(GPT2LMHeadModel(settings), folder)
    rewrite(folder, lambda tensors: tensors | {"ln_f.weight": tensors["transformer.ln_f.weight"].clone() + 1})
    return folder


def test_a_second_spelling_of_a_name_is_no_copy_of_a_tied_weight(tmp_path: Path) -> None:
    assert is_ready(recipe(twice_spelled(tmp_path / "model"))) is None


@pytest.mark.parametrize("make", [tied, untied, doubled_llama])
def test_a_folder_under_the_live_names_is_used_as_it_lies(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "model")
    assert is_ready(recipe(folder)) == folder
    assert is_ready(recipe(folder, dtype="bfloat16")) is None
    run, _ = started(folder, tmp_path / "run")
    assert [file.name for file in run.start.iterdir()] == ["start.json"]
    assert "copy" not in capsys.readouterr().err


def test_a_copy_of_a_tied_weight_in_another_dtype_is_no_copy(tmp_path: Path) -> None:
    """A delta has the values of both in one dtype."""
    folder = doubled_llama(tmp_path / "model")
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"].half().bfloat16()})
    rewrite(
        folder,
        lambda tensors: tensors | {"model.embed_tokens.weight": tensors["lm_head.weight"].float()},
    )
    assert is_ready(recipe(folder)) is None


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    folder = saved(model(), tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "none"}')
    with pytest.raises(UserError, match=r"model: transformers cannot load a causal language model from it"):
        is_ready(recipe(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        is_ready(recipe(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_an_edit_beside_the_weights_is_another_start(name: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.start.mkdir()
    folder = saved(model(), tmp_path / "model")
    (folder / "README.md").touch()
    before = write_start(run, folder)
    (folder / "README.md").write_text("words about the model")
    assert write_start(run, folder) == before
    (folder / name).write_text((folder / name).read_text() + "\n")
    after = write_start(run, folder)
    assert {file for file in before.files if before.files[file] != after.files[file]} == {name}
    assert before.fingerprint == after.fingerprint
