"""The bounds of a recipe's numbers, names and paths: what no run could hold is refused by its key before it starts."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from allo.errors import UserError
from allo.recipe import load_recipe
from allo.recipe.numbers import MOST_SEED
from allo.sampling.endpoint import LONGEST_TIMEOUT, MOST_AT_ONCE, MOST_RETRIES, Endpoint, check_endpoint

RECIPE = """\
name: smallest
model: some/model
data: {task: planted_flaws}
evaluate: {sets: {test: {task: planted_flaws, split: test}}}
compare: {validation: {task: planted_flaws}}
"""
SERVERS = "sample={backend: openai, model: m, servers: {base_urls: ['http://host/v1'], %s}}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(path, list(overrides))
    return str(error.value)


def test_the_largest_seed_is_one_that_every_generator_takes() -> None:
    transformers.set_seed(MOST_SEED)
    torch.manual_seed(MOST_SEED + 1000)  # an epoch's is added
    np.random.default_rng(MOST_SEED)
    with pytest.raises(ValueError, match="Seed must be between"):
        transformers.set_seed(MOST_SEED + 1)


@pytest.mark.parametrize("key", ["seed", "data_seed", "compare.seeds", "compare.tuning_seeds"])
def test_a_seed_beyond_the_generators_is_refused(recipe: Path, key: str) -> None:
    shape = "[%s]" if key.startswith("compare") else "%s"
    load_recipe(recipe, [f"{key}={shape % MOST_SEED}"])
    for seed in (MOST_SEED + 1, 2**63, 10**300, -1):
        found = refusal(recipe, f"{key}={shape % seed}")
        assert f": {key}" in found and ("4294967295" in found or "greater than or equal to 0" in found)


# Each key with a large value that is fine, and its bound.
COUNTS = {
    "max_length": (10**7, 2**24),
    "rounds": (100, 1000),
    "data.limit": (10**6, 10**9),
    "data.skip": (10**6, 10**9),
    "sample.num_generations": (4096, 10_000),
    "sample.max_new_tokens": (1199, 2**24),
    "sample.batch_size": (4096, 2**16),
    "judge.max_length": (10**6, 2**24),
    "judge.batch_size": (4096, 2**16),
    "pair.max_pairs_per_prompt": (10**6, 10**9),
    "locate.max_tokens_per_batch": (10**6, 2**24),
    "score.batch_size": (4096, 2**16),
    "improve.adapter_rank": (512, 10**9),
    "forget.max_tokens_per_batch": (10**6, 2**24),
    "improve.training.per_device_train_batch_size": (4096, 2**16),
    "improve.training.gradient_accumulation_steps": (4096, 10**9),
    "improve.training.save_total_limit": (1000, 10**6),
    "evaluate.num_generations": (1024, 10_000),
    "evaluate.max_new_tokens": (10**6, 2**24),
    "evaluate.batch_size": (4096, 2**16),
    "evaluate.likelihood_pairs": (10**6, 10**9),
    "evaluate.sets.test.num_generations": (1024, 10_000),
    "evaluate.sets.test.limit": (10**6, 10**9),
    "report.num_examples": (1000, 10**9),
    "compare.extra_trials": (100, 1000),
    "compare.beyond": (100, 1000),
}


@pytest.mark.parametrize("key", COUNTS)
def test_a_count_that_no_run_could_hold_is_refused_with_its_bound(recipe: Path, key: str) -> None:
    fine, bound = COUNTS[key]
    trainer = ["forget=null", "improve.trainer=lora"] if key == "improve.adapter_rank" else []
    load_recipe(recipe, [*trainer, f"{key}={fine}"])
    for number in (bound + 1, 100_000_000_000, 10**399):
        found = refusal(recipe, *trainer, f"{key}={number}")
        assert f": {key}: " in found and f"less than or equal to {bound}" in found


@pytest.mark.parametrize(
    ("key", "bound"),
    [("concurrency", 4096), ("max_retries", 1000), ("timeout", 604_800), ("patience", 604_800)],
)
def test_how_servers_are_asked_has_bounds(recipe: Path, key: str, bound: int) -> None:
    load_recipe(recipe, [SERVERS % f"{key}: {bound}"])
    found = refusal(recipe, SERVERS % f"{key}: {bound + 1}")
    assert f": sample.servers.{key}: " in found and f"less than or equal to {bound}" in found


@pytest.mark.parametrize(
    ("key", "value"),
    list(
        itertools.product(
            [
                "seed",
                "max_length",
                "data.limit",
                "sample.num_generations",
                "improve.training.save_total_limit",
            ],
            ["true", "false", "yes", "'3'", "3.0", "2.5", "null", "[3]", "{a: 3}", "3e0", "'0x3'", "three"],
        )
    )
    + list(
        itertools.product(
            ["improve.density", "improve.beta", "sample.temperature", "improve.training.learning_rate"],
            ["true", "no", "'0.1'", "null", "[0.1]", "much", "1e39", "-1", "'1'"],
        )
    ),
)
def test_a_number_is_no_flag_no_text_and_nothing_in_between(recipe: Path, key: str, value: str) -> None:
    if (key, value) == ("data.limit", "null"):
        return  # no limit
    assert f": {key}: " in refusal(recipe, f"{key}={value}")


@pytest.mark.parametrize(
    ("setting", "fine"),
    [
        *((f"max_steps={number}", 9) for number in (10**10, -2, "many", 1.5)),
        *((f"data_seed={seed}", 7) for seed in (-5, 2**32)),
        *((f"{beta}={number}", 0.9) for beta in ("adam_beta1", "adam_beta2") for number in (1, 1.5, -0.1)),
        *((f"{name}=-1", 0) for name in ("adam_epsilon", "weight_decay")),
        ("max_grad_norm=x", 1.0),
        ("num_train_epochs=1e+30", 2.0),
    ],
)
def test_settings_that_would_end_a_training_are_refused_before_it(
    recipe: Path, setting: str, fine: float
) -> None:
    name = setting.partition("=")[0]
    load_recipe(recipe, [f"improve.training.{name}={fine}"])
    found = refusal(recipe, f"improve.training.{setting}")
    assert ": improve.training" in found and name in found and "Input should be" in found


def test_an_empty_stop_string_is_refused_since_every_text_holds_it(recipe: Path) -> None:
    load_recipe(recipe, ["sample.stop=['x']"])
    found = refusal(recipe, "sample.stop=['x', '']")
    assert ": sample.stop.1: " in found and "at least 1 character" in found


@pytest.mark.parametrize("key", ["sample.temperature", "improve.anchor", "pair.margin"])
def test_a_negative_zero_is_zero(recipe: Path, key: str) -> None:
    more = ["sample.num_generations=1"]
    assert load_recipe(recipe, [*more, f"{key}=-0.0"]).model_dump_json() == (
        load_recipe(recipe, [*more, f"{key}=0"]).model_dump_json()
    )


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model=''", "model"),
        ("model='  '", "model"),
        ("model=" + "x" * 5000, "model"),
        ("name=" + "x" * 300, "name"),
        ("name=.", "name"),
        ("name=..", "name"),
        ('name="a\\nb"', "name"),
        ('name="a\\n"', "name"),
        ("out=''", "out"),
        ("out=' '", "out"),
        ("data_folder=''", "data_folder"),
        ('data_folder="a\\0b"', "data_folder"),
        ("data={file: ''}", "data.file"),
        ("data={pairs: ''}", "data.pairs"),
        ("data={hub: ''}", "data.hub"),
        ("data={task: ecqa, split: ''}", "data.split"),
        ("score.rewriter=''", "score.rewriter"),
        ("pad_token=''", "pad_token"),
        ("judge.reward_model=''", "judge.reward_model"),
        ("evaluate.reward_model=''", "evaluate.reward_model"),
        ("evaluate.sets." + "x" * 300 + "={task: ecqa}", "evaluate.sets." + "x" * 300),
        ("device=meta", "device"),
        ("device=''", "device"),
        ("device=cuda:-1", "device"),
        ("device=cuda:99999999999", "device"),
        ("device=gpu", "device"),
        ("device=CPU", "device"),
    ],
)
def test_names_paths_and_devices_that_are_none_are_refused(recipe: Path, override: str, key: str) -> None:
    assert f": {key}: " in refusal(recipe, override)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "mps", "xpu"])
def test_devices_that_may_be_there_are_left_to_torch(recipe: Path, device: str) -> None:
    assert load_recipe(recipe, [f"device={device}"]).device == device


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("concurrency", [0, -1, MOST_AT_ONCE + 1, 10**11]),
        ("timeout", [0, -1.0, float("nan"), float("inf"), LONGEST_TIMEOUT + 1]),
        ("max_retries", [-1, MOST_RETRIES + 1, 10**11]),
        ("price_in", [-1.0, float("nan"), float("inf")]),
        ("price_out", [-1.0, float("nan"), float("inf")]),
    ],
)
def test_an_endpoints_settings_have_bounds(
    field: str, values: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    good = Endpoint("http://host/v1", "model", concurrency=MOST_AT_ONCE, timeout=LONGEST_TIMEOUT)
    check_endpoint(good)
    for value in values:
        with pytest.raises(UserError, match=rf"^{field} is .*; give a number from"):
            check_endpoint(replace(good, **{field: value}))
    with pytest.raises(UserError, match="the model has no name"):
        check_endpoint(replace(good, model=" "))
