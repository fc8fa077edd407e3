"""A recipe whose model is sharded ends like one whose model is whole; what a sharded model cannot do is refused first."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from allo.errors import UserError
from allo.files.artifacts import read_json
from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.weights.importance_map import ImportanceMap
from sharded_cases import save_models
from tiny import pairs

STEPS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "learning_rate": 0.3,
    "optim": "sgd",
}

ANY_SET = {"gsm8k": {"task": "gsm8k", "split": "test", "limit": 2}}
SERVED = {"backend": "openai", "serve": True, "max_new_tokens": 8}


def recipe(folder: Path, **changes: Any) -> Path:
    """Write a recipe of ready pairs on the tiny model, and return its file."""
    fields: dict[str, Any] = {
        "name": "run",
        "out": str(folder / "runs"),
        "model": str(folder / "untied"),
        "dtype": "float32",
        "device": "cpu",
        "max_length": 64,
        "data": {"pairs": str(folder / "pairs.jsonl")},
        "locate": {"criterion": "gradient"},
        "score": {"scorer": "confidence"},
        "forget": {"density": 0.1, "training": STEPS},
        "improve": {"density": 0.2, "training": STEPS},
    }
    file = folder / f"{changes.get('name', 'run')}.yaml"
    file.write_text(yaml.safe_dump(fields | changes))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_models(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs()))
    return tmp_path


@pytest.mark.slow
@pytest.mark.invariant("A run whose model is sharded ends like one whose model is whole, to rounding.")
def test_a_sharded_run_ends_like_a_whole_one(folder: Path) -> None:
    measured = {
        "evaluate": {"likelihood_pairs": 8, "forgotten": True},
        "data": {"pairs": str(folder / "pairs.jsonl"), "held_out": 5},
    }
    file = recipe(folder, name="two", shards=2, **measured)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "allo"]
    done = subprocess.run(
        [sys.executable, *launch, "run", str(file)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "no answers were measured" in done.stderr
    one = run_all(load_recipe(recipe(folder, name="one", **measured))).path
    two = folder / "runs" / "two"
    masks = [ImportanceMap.load(run / "04-importance.safetensors").mask_at(0.2) for run in (one, two)]
    assert masks[0].num_selected == masks[1].num_selected and masks[0].overlap(masks[1]) > 0.998
    assert masks[0].metadata == masks[1].metadata
    for stage in ("06-forget", "07-improve"):
        whole, sharded = (load_file(run / stage / "model" / "model.safetensors") for run in (one, two))
        assert whole.keys() == sharded.keys()
        assert max(float((whole[name] - sharded[name]).abs().max()) for name in whole) < 1e-5
        logs = [
            [json.loads(line)["loss"] for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
            for run in (one, two)
        ]
        assert logs[0] == pytest.approx(logs[1], abs=1e-6)
    alone, together = (read_json(run / "08-eval.json")["models"] for run in (one, two))
    assert alone.keys() == together.keys() == {"start", "forgotten", "aligned"}
    for name, model in alone.items():
        assert together[name]["held_out"]["num_pairs"] == 5
        for measure in ("held_out", "likelihood"):
            expected, found = (numbers(each[measure]) for each in (model, together[name]))
            assert found == pytest.approx(expected, abs=1e-5), (name, measure)
    assert (two / "report.html").exists() and not [*two.rglob("*.part")]


def numbers(found: Any, name: str = "") -> dict[str, Any]:
    """Return a nested record's values by their paths."""
    if not isinstance(found, dict):
        return {name: found}
    return {
        path: value for key, one in found.items() for path, value in numbers(one, f"{name}/{key}").items()
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": {"file": "p.jsonl"}, "sample": {"max_new_tokens": 8}},
            "does not sample: set sample.backend to openai, and sample.serve",
        ),
        (
            {"data": {"file": "p.jsonl", "held_out": 3}, "sample": SERVED},
            "would only be left out: remove data.held_out",
        ),
        ({"improve": {"trainer": "lora"}, "forget": None}, "trains whole models"),
        ({"locate": {"granularity": "row"}}, "single weights are located"),
        ({"score": {"scorer": "implicit"}, "locate": {"criterion": "warmup"}}, "asks other models"),
        (
            {"evaluate": {"sets": ANY_SET, "kl": {"task": "gsm8k", "limit": 2}}},
            "does not sample: remove evaluate.sets, evaluate.kl; after",
        ),
    ],
)
def test_what_a_sharded_model_cannot_do_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"shards: .*{said}"):
        load_recipe(recipe(tmp_path, shards=2, **changes))


def test_a_run_needs_a_multiple_of_its_shards_in_processes(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs()[0]) + "\n")
    with pytest.raises(UserError, match=r"shards is 3, and there is one process: .*--processes 3"):
        run_all(load_recipe(recipe(tmp_path, shards=3)))
