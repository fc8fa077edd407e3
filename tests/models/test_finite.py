"""NaN and infinite weights are named by tensor: where they are loaded, after training, before they are written."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from allo import delta
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder
from allo.models.load import load_model
from allo.models.reward_model import load_reward_model
from allo.models.start import save_whole, write_start
from allo.training.result import write_change
from allo.training.run import train
from allo.training.trainer import ImproveTrainer
from allo.weights.finite import check_finite, first_not_finite, is_finite
from model_folders import copy_of, tensors_of, write

NORM = "model.norm.weight"
BAD = [float("nan"), float("inf"), float("-inf")]


def spoil(folder: Path, name: str = NORM, value: float = float("nan")) -> Path:
    tensors = tensors_of(folder)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    write(folder, tensors)
    return folder


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DTYPES), st.integers(1, 40), st.integers(0, 39), st.sampled_from([*BAD, 3.0, -57344.0])
)
def test_one_entry_of_any_dtype_at_any_place_is_seen(
    dtype: torch.dtype, size: int, place: int, value: float
) -> None:
    tensor = torch.zeros(size).index_fill(0, torch.tensor([place % size]), value).to(dtype)
    assert is_finite(tensor) == bool(tensor.double().isfinite().all())


def test_the_largest_numbers_are_finite_although_their_sum_is_not() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert is_finite(torch.full((4000,), torch.finfo(dtype).max, dtype=dtype))
    assert (
        is_finite(torch.empty(0))
        and is_finite(torch.tensor(7))
        and is_finite(torch.ones(2, dtype=torch.bool))
    )


def test_the_first_tensor_is_named_with_how_many_entries() -> None:
    bad = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])
    tensors = [("good", torch.ones(3)), ("bad", bad.bfloat16()), ("later", bad)]
    assert first_not_finite(tensors) == "tensor bad has 2 of 4 entries that are NaN or infinite"
    with pytest.raises(DivergedError, match=r"here: tensor bad has 2 of 4 .*infinite\. Do this\."):
        check_finite(tensors, where="here", advice="Do this.", kind=DivergedError)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", [NORM, "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_a_folder_with_such_a_weight_does_not_load_nor_start_a_run(
    folder: Path, tmp_path: Path, name: str, value: float
) -> None:
    spoil(folder, name, value)
    with pytest.raises(UserError, match=f"{folder}: tensor {name} has 1 of"):
        load_model(folder, dtype=torch.bfloat16, device="cpu")
    run = RunFolder(tmp_path / "run")
    run.start.mkdir(parents=True)
    with pytest.raises(UserError, match=f"{folder}: tensor {name} has 1 of"):
        write_start(run, folder)
    assert not list(run.start.iterdir())


def test_what_becomes_infinite_in_the_runs_dtype_is_seen_too(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors[NORM] = tensors[NORM].double() * 1e300
    write(folder, tensors)
    with pytest.raises(UserError, match=f"tensor {NORM} has 16 of 16"):
        load_model(folder, dtype=torch.float32, device="cpu")


def test_a_reward_model_with_such_a_weight_does_not_load(tmp_path: Path) -> None:
    judge = spoil(tiny.reward_model(tmp_path / "judge"), "score.weight")
    with pytest.raises(UserError, match=r"judge: tensor score\.weight has 1 of"):
        load_reward_model(judge, dtype=torch.float32, device="cpu")


def test_a_trainer_that_ends_with_such_a_weight_fails_by_name(tmp_path: Path) -> None:
    policy = tiny.model()

    class Spoils(ImproveTrainer):
        def train(self, *args: object, **kwargs: object) -> object:
            policy.model.norm.weight.data[3] = float("inf")
            return None

    trainer = Spoils(
        policy,
        tiny.arguments(tmp_path),
        tiny.pairs(),
        tiny.TOKENIZER,
        mask=tiny.every_third(policy),
        max_length=64,
    )
    with pytest.raises(DivergedError, match=rf"tensor {NORM} has 1 of 16.*Lower the learning rate"):
        train(trainer)


def test_such_a_model_is_not_written(folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.path / "07-improve").mkdir(parents=True)
    run.start.mkdir()
    write_start(run, folder)
    model = load_model(folder, dtype=torch.float32, device="cpu")
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(DivergedError, match=f"tensor {NORM}"):
        write_change(model, run, run.path / "07-improve", among={NORM}, metadata={})
    with pytest.raises(DivergedError, match=f"tensor {NORM}"):
        save_whole(model, tiny.TOKENIZER, tmp_path / "saved")
    assert not list((run.path / "07-improve").iterdir()) and not (tmp_path / "saved").exists()


def test_a_deltas_values_are_named_and_not_put_into_a_live_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = spoil(copy_of(folder, tmp_path / "tuned"))
    delta.extract(folder, tuned, tmp_path / "delta.safetensors")
    assert f"tensor {NORM} has 1 of 1 entries that are NaN" in capsys.readouterr().err
    model = load_model(folder, dtype=torch.float32, device="cpu")
    before = tiny.weights(model)
    with pytest.raises(UserError, match=f"tensor {NORM}"):
        delta.apply_to_model(model.named_parameters(), delta.read_delta(tmp_path / "delta.safetensors"))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", [NORM, "model.embed_tokens.weight"])
def test_a_model_given_to_a_trainer_is_named_by_its_tensor(name: str, value: float, tmp_path: Path) -> None:
    """Also where the few tokens that the head is tried on do not reach the entry."""
    policy = tiny.model()
    policy.get_parameter(name).data.view(-1)[-1] = value
    with pytest.raises(UserError, match=rf"^LlamaForCausalLM: tensor {name} has 1 of .* NaN or infinite"):
        ImproveTrainer(
            policy, tiny.arguments(tmp_path), tiny.pairs(), tiny.TOKENIZER, mask=tiny.full_mask(policy)
        )
