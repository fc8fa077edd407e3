"""Runs of families that transformers converts: they start from the user's own folder, and their files are for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import converted
from allo import delta
from allo.errors import UserError
from allo.files.artifacts import RunFolder, write_jsonl
from allo.files.records import Pair
from allo.harness.subject import Source, load
from allo.models.start import allowed_in_start, is_ready, load_start, read_start
from allo.recipe import Recipe
from allo.recipe.criteria import CRITERIA
from allo.stages import forget, improve, locate, score, sft
from allo.training.arguments import stage_arguments
from allo.training.locating import Search
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.fingerprints import fingerprint_tensors
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout, stored_tensors, trained_parameters
from allo.weights.mask_files import mask_from_checkpoints
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from locate_setup import wrong_completions
from tiny import pairs

DENSITY = 0.05
TRAINING = {
    "learning_rate": 1e-2,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
}


def recipe(model: Path, *, dtype: str = "float32", criterion: str = "magnitude", **own: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny",
        "model": str(model),
        "dtype": dtype,
        "device": "cpu",
        "max_length": 64,
        "data": {"pairs": "unused.jsonl"},
        "locate": {"criterion": criterion, "training": TRAINING},
        "score": {"scorer": "implicit" if CRITERIA[criterion].trains else "uniform", "batch_size": 4},
        "forget": {"density": DENSITY / 2, "training": TRAINING},
        "improve": {"density": DENSITY, "training": TRAINING},
        "evaluate": {"sets": {"none": {"task": "planted_flaws"}}},
    }
    return Recipe.model_validate(fields | own)


def begun(of: Recipe, place: Path) -> RunFolder:
    """A run after its first stage, with pairs."""
    place.mkdir()
    run = RunFolder(place)
    sft.run(of, run)
    write_jsonl(run.pairs, [Pair(prompt_id=str(row), **pair) for row, pair in enumerate(pairs())])
    return run


def improved(of: Recipe, place: Path) -> RunFolder:
    run = begun(of, place)
    write_jsonl(run.wrong, wrong_completions())
    for stage, folder in ((locate, None), (score, None), (forget, run.forget), (improve, run.improve)):
        if folder:
            folder.mkdir()
        stage.run(of, run)
    return run


def changed(one: Path, other: Path) -> dict[str, torch.Tensor]:
    """The flat indices at which two folders differ, by tensor."""
    first, second = Checkpoint.open(one), Checkpoint.open(other)
    assert first.shapes == second.shapes
    found = {
        name: (first.read(name) != second.read(name)).reshape(-1).nonzero().squeeze(1)
        for name in first.stored
    }
    return {name: where for name, where in found.items() if len(where)}


# Those of test_smoke.py are slow here.
SMOKED = ["deepseek_v3", "gemma4_text", "gemma3"]
RUN = [
    "mixtral",
    "gpt_neox",
    "granitemoe",
    "qwen2_5_vl",
    *(pytest.param(name, marks=pytest.mark.slow) for name in SMOKED),
]


@pytest.mark.parametrize("family", RUN)
def test_the_delta_turns_the_users_folder_into_the_result(tmp_path: Path, family: str) -> None:
    own = converted.saved(family, tmp_path / "model")
    run = improved(recipe(own), tmp_path / "run")
    assert Path(read_start(run).model) == own
    result, mask = run.improve / "model", ParamMask.load(run.improve / "mask.safetensors")
    delta.apply(own, run.improve / "delta.safetensors", tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(result)
    found = changed(own, result)
    assert all(set(where.tolist()) <= set(mask.indices[name].tolist()) for name, where in found.items())
    # Some of the selected weights are embeddings of tokens that no row has.
    assert 0.7 * mask.num_selected <= sum(map(len, found.values())) <= mask.num_selected
    live = converted.plain(family, result)
    assert fingerprint_tensors(stored_tensors(live)) == fingerprint(result)
    assert mask.num_selected == round(DENSITY * mask.num_weights)
    assert mask.num_weights == sum(param.numel() for param in trained_parameters(live).values())


@pytest.mark.parametrize("family", [*converted.BARE, "mixtral"])
def test_a_folder_without_the_bodys_prefix_keeps_its_names(tmp_path: Path, family: str) -> None:
    own = converted.bare(family, tmp_path / "model")
    run = improved(recipe(own), tmp_path / "run")
    assert Path(read_start(run).model) == own
    result, file = run.improve / "model", run.improve / "delta.safetensors"
    mask = ParamMask.load(run.improve / "mask.safetensors")
    delta.apply(own, file, tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(result)
    found = changed(own, result)
    assert sum(map(len, found.values())) >= 0.7 * mask.num_selected
    assert all(set(where.tolist()) <= set(mask.indices[name].tolist()) for name, where in found.items())
    live, tuned = converted.plain(family, own), converted.plain(family, result).state_dict()
    assert mask.num_weights == sum(param.numel() for param in trained_parameters(live).values())
    if family == "mixtral":
        return  # transformers alone does not know that its names were converted and have no prefix
    SelectedWeights(live, mask)
    delta.apply_to_model(live, delta.read_delta(file))
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in live.state_dict().items())


@pytest.mark.parametrize("family", [*converted.TIED, "gpt2"])
def test_the_delta_changes_both_copies_of_a_tied_head(tmp_path: Path, family: str) -> None:
    own = converted.doubled(family, tmp_path / "model")
    run = improved(recipe(own, criterion="random"), tmp_path / "run")
    assert Path(read_start(run).model) == own
    result, file = run.improve / "model", run.improve / "delta.safetensors"
    delta.apply(own, file, tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(result)
    found, change = changed(own, result), delta.read_delta(file)
    (name,) = (name for name in found if "embed" in name or "wte" in name)
    assert torch.equal(found[name], found["lm_head.weight"])
    assert change.num_changed == sum(map(len, found.values()))
    live, tuned = converted.plain(family, own), converted.plain(family, result)
    mask = ParamMask.load(run.improve / "mask.safetensors")
    assert mask.num_weights == sum(param.numel() for param in live.parameters())
    assert set(found[name].tolist()) <= set(mask.indices[name].tolist())
    delta.apply_to_model(live, change)
    wanted = tuned.state_dict()
    assert all(torch.equal(tensor, wanted[each]) for each, tensor in live.state_dict().items())
    loaded = load(
        Source("tuned", "tuned", own, file, None), dtype=None, device="cpu", trust_remote_code=False
    )
    assert loaded.fingerprint == fingerprint(result)
    change.values["lm_head.weight"][0] += 1
    with pytest.raises(UserError, match=r"embed.*|wte.* and lm_head.weight differently"):
        delta.apply_to_model(live, change)


@pytest.mark.parametrize("named", ["transformer.h.1.*", "h.1.*"])
@pytest.mark.parametrize("make", [converted.bare, converted.saved])
def test_patterns_name_tensors_with_and_without_the_bodys_prefix(
    tmp_path: Path, make: Callable[[str, Path], Path], named: str
) -> None:
    settings = recipe(make("gpt2", tmp_path), locate={"criterion": "magnitude", "include": [named]})
    allowed, prefix = allowed_in_start(settings), "transformer." if make is converted.saved else ""
    assert allowed is not None
    assert len(allowed.names) == 12
    assert all(name.startswith(f"{prefix}h.1.") for name in allowed.names)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_the_tower_of_a_wrapper_keeps_its_bits(tmp_path: Path, family: str) -> None:
    own = converted.saved(family, tmp_path / "model")
    run = improved(recipe(own, criterion="random"), tmp_path / "run")
    towers = [name for name in Checkpoint.open(own).stored if "vision" in name or "visual" in name]
    assert towers
    assert not set(towers) & changed(own, run.improve / "model").keys()


@pytest.mark.parametrize("criterion", ["warmup", "magnitude", "random", "last"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_neox"])
def test_a_criterion_selects_the_entries_that_two_folders_give(
    tmp_path: Path, family: str, criterion: str
) -> None:
    own = converted.saved(family, tmp_path / "model")
    settings = recipe(own, criterion=criterion)
    run = begun(settings, tmp_path / "run")
    locate.run(settings, run)
    mask = ImportanceMap.load(run.importance).mask_at(DENSITY)
    tuned, name = own, criterion
    if criterion == "warmup":
        tuned, name = warm(family, own, run), "delta"
    file = tmp_path / "mask.safetensors"
    expected = mask_from_checkpoints(
        own, tuned, density=DENSITY, out=file, criterion=name, seed=settings.seed
    )
    assert mask.shapes == expected.shapes
    assert mask.metadata["base_fingerprint"] == expected.metadata["base_fingerprint"]
    assert mask.indices.keys() == expected.indices.keys()
    assert all(torch.equal(mask.indices[tensor], expected.indices[tensor]) for tensor in mask.indices)


@pytest.mark.parametrize("criterion", ["warmup", "gradient", "magnitude"])
def test_experts_may_be_named_one_by_one(tmp_path: Path, criterion: str) -> None:
    own = converted.saved("mixtral", tmp_path / "model")
    named = {"include": ["*.experts.1.*"], "exclude": ["*.w2.weight"]}
    locating = {"criterion": criterion, "training": TRAINING} | named
    settings = recipe(own, criterion=criterion, locate=locating)
    run = begun(settings, tmp_path / "run")
    locate.run(settings, run)
    mask = ImportanceMap.load(run.importance).mask_at(DENSITY)
    assert {name.split("experts.")[1] for name in mask.indices} == {"1.w1.weight", "1.w3.weight"}
    assert mask.num_selected == round(DENSITY * mask.num_weights)
    if criterion != "gradient":
        tuned, file = (
            (warm("mixtral", own, run) if criterion == "warmup" else own),
            tmp_path / "mask.safetensors",
        )
        name = "delta" if criterion == "warmup" else criterion
        expected = mask_from_checkpoints(own, tuned, density=DENSITY, out=file, criterion=name, **named)
        assert all(torch.equal(mask.indices[each], expected.indices[each]) for each in expected.indices)


def warm(family: str, own: Path, run: RunFolder) -> Path:
    """The folder of the warmed-up model."""
    model = converted.plain(family, own)
    weights = load_file(run.warmup / "weights.safetensors")
    for name, param in trained_parameters(model).items():
        if name in weights:
            param.data.copy_(weights[name])
    model.save_pretrained(run.path / "warm")
    return run.path / "warm"


@pytest.mark.parametrize("criterion", ["warmup_fused", "gradient"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "granitemoe"])
def test_scores_stand_beside_their_own_weights(tmp_path: Path, family: str, criterion: str) -> None:
    own = converted.saved(family, tmp_path / "model")
    settings = recipe(own, criterion=criterion)
    run = begun(settings, tmp_path / "run")
    locate.run(settings, run)
    found = ImportanceMap.load(run.importance)
    if criterion == "warmup_fused":
        base, tuned = Checkpoint.open(own), Checkpoint.open(warm(family, own, run))
        scores = {name: (tuned.read(name) - base.read(name)).abs() for name in base.stored}
    else:
        scores = gradients(own, settings, run)
    for name, where in found.indices.items():
        expected = scores[name].reshape(-1)[where.long()]
        torch.testing.assert_close(found.scores[name], expected, rtol=1e-3, atol=1e-6)


def gradients(own: Path, settings: Recipe, run: RunFolder) -> dict[str, torch.Tensor]:
    """The summed gradients of all pairs as they would be saved, from the same passes over a model as it is in memory."""
    model, tokenizer = load_start(settings, run)
    assert settings.locate is not None
    rows, _ = locate._rows(settings, run, tokenizer)
    arguments = stage_arguments(settings, "locate", folder=run.warmup, device=model.device)
    passes = Search(Layout.of(model), rows, arguments, tokenizer, settings.locate)._passes()
    gradient_of: dict[str, list[torch.Tensor]] = {}
    passes.take_start_gradients(
        lambda name, param, gradient: gradient_of.setdefault(name, []).append(gradient)
    )
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(sum(gradient_of.get(name, []), torch.zeros_like(param)).abs())
    model.save_pretrained(run.path / "gradients")
    return dict(load_file(run.path / "gradients" / "model.safetensors"))


@pytest.mark.parametrize("stored", ["as transformers saves them", "all in bf16"])
def test_routers_that_the_family_keeps_in_fp32_change_in_their_dtype_on_disk(
    tmp_path: Path, stored: str
) -> None:
    own = converted.saved("ernie4_5_moe", tmp_path / "model", torch.bfloat16)
    if stored == "as transformers saves them":
        converted.plain("ernie4_5_moe", own, torch.bfloat16).save_pretrained(own)
    settings = recipe(own, dtype="bfloat16", criterion="random")
    dtypes = {name: entry.dtype for name, entry in Checkpoint.open(own).stored.items()}
    assert (torch.float32 in dtypes.values()) == (stored == "as transformers saves them")
    live = converted.plain("ernie4_5_moe", own, torch.bfloat16)
    assert {param.dtype for param in live.parameters()} == {torch.bfloat16, torch.float32}
    run = improved(settings, tmp_path / "run")
    assert Path(read_start(run).model) == own
    result = Checkpoint.open(run.improve / "model")
    assert {name: entry.dtype for name, entry in result.stored.items()} == dtypes
    delta.apply(own, run.improve / "delta.safetensors", tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(run.improve / "model")
    assert [name for name in changed(own, run.improve / "model") if "gate.weight" in name]


def test_other_dtypes_than_the_familys_are_no_start(tmp_path: Path) -> None:
    own = converted.saved("ernie4_5_moe", tmp_path / "model")
    assert is_ready(recipe(own)) == own
    assert is_ready(recipe(own, dtype="bfloat16")) is None
    half = converted.saved("ernie4_5_moe", tmp_path / "half", torch.bfloat16)
    assert is_ready(recipe(half, dtype="bfloat16")) == half
    assert is_ready(recipe(half)) is None
