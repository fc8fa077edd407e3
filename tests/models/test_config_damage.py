"""A config.json or a device that nothing can be made of ends in one sentence, whatever kind of error it is below."""

from pathlib import Path
from typing import Any

import pytest
import torch

from allo.errors import UserError
from allo.models.device import resolve_device
from allo.models.load import load_model, loading, locate_checkpoint, read_config
from model_folders import edit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, r"ZeroDivisionError.*says num_attention_heads: 0"),
        ({"num_attention_heads": 3}, r"(?s)hidden size.*16.*not a multiple"),
        ({"num_attention_heads": "two"}, "says num_attention_heads: 'two'"),
        ({"num_attention_heads": 2.5}, r"says num_attention_heads: 2\.5"),
        ({"num_key_value_heads": 0}, "says num_key_value_heads: 0"),
        ({"hidden_size": -16}, "hidden_size: -16"),
        ({"vocab_size": 0}, "says vocab_size: 0|shape"),
        ({"vocab_size": True}, "says vocab_size: True|expected int"),
        ({"head_dim": 0}, "ZeroDivisionError"),
        ({"pad_token_id": 10**9}, "AssertionError"),
        ({"model_type": "nope"}, "nope"),
        ({"model_type": ["llama"]}, "TypeError"),
        ({"model_type": "custom", "auto_map": {"AutoConfig": "a.B"}}, "trust_remote_code|a.py"),
        ({"hidden_act": "nope"}, "nope"),
        ({"rope_parameters": {"rope_type": "nope"}}, "nope"),
        ({"dtype": "nope"}, "nope"),
        ({"text_config": 7}, "AttributeError"),
        ({"id2label": 7}, "AttributeError"),
    ],
)
def test_a_configuration_of_no_model_is_refused_in_one_sentence(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder, "config.json", **changes)
    with pytest.raises(UserError, match=message) as refused:
        load_model(folder, dtype=torch.float32, device="cpu")
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[1]", '{"a":' * 5000 + "1" + "}" * 5000, '{"model_type": NaN}', "\0"]
)
def test_a_configuration_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    for read in (read_config, lambda each: load_model(each, dtype=torch.float32, device="cpu")):
        with pytest.raises(UserError, match=r"config\.json"):
            read(folder)


class PanicException(BaseException):
    """As native code raises it: no Exception, known by its name alone."""


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        AttributeError("x"),
        MemoryError(),
        OverflowError(),
        Exception("x"),
        PanicException("x"),
    ],
)
def test_whatever_native_code_raises_becomes_a_refusal(error: BaseException) -> None:
    message = f"model: transformers cannot load it from it: {type(error).__name__}"
    with pytest.raises(UserError, match=message), loading("model", "it"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_stops_the_program_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), loading("model", "it"):
        raise error


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "vulkan", "cpu:1", "", " ", "cuda:-1", "gpu"])
def test_a_device_that_allo_does_not_train_on_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=f"device {device!r}"):
        resolve_device(device)


def test_the_device_is_looked_at_before_the_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'meta'"):
        load_model(tmp_path / "absent", dtype=torch.float32, device="meta")


@pytest.mark.parametrize("ref", ["", " ", "\n"])
def test_an_empty_model_is_not_the_working_folder(ref: str) -> None:
    with pytest.raises(UserError, match="`model` is empty"):
        locate_checkpoint(ref, [])
