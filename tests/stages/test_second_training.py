"""The second of the two trainings goes on from what the first left, and leaves the run's result."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from allo import delta
from allo.compare.trials import _losses
from allo.files.artifacts import RunFolder, read_json
from allo.models.start import read_start, write_start
from allo.pipeline import run_all
from allo.report.read import view
from allo.stages import forget, improve
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.fingerprints import as_bits
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from tiny_run import tiny

# The recipe's own model, one set of greedy answers, two steps or more of each training, at rates that show.
QUICK = (
    *("sft=null", "data.limit=8", "evaluate.num_generations=0", "evaluate.kl=null", "evaluate.start=false"),
    *("locate.criterion=magnitude", "score.scorer=confidence", "sample.batch_size=32"),
    *("forget.training.learning_rate=1e-3", "improve.training.learning_rate=1e-3"),
    *("forget.training.warmup_steps=0", "improve.training.warmup_steps=0"),
    *("forget.training.num_train_epochs=2", "improve.training.num_train_epochs=2"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tiny(tmp_path_factory.mktemp("both"), *QUICK, "evaluate.forgotten=true")).path


@pytest.mark.invariant(
    "The second training starts from the first's model, has it as reference, and leaves the run's result."
)
def test_the_last_delta_applied_to_the_start_is_the_last_model(run: Path, tmp_path: Path) -> None:
    start = Path(read_start(RunFolder(run)).model)
    first, last = (run / name for name in ("06-forget", "07-improve"))
    delta.apply(start, last / "delta.safetensors", tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(last / "model")
    mask = ParamMask.load(last / "mask.safetensors")
    before, between, after = (Checkpoint.open(one) for one in (start, first / "model", last / "model"))
    forgotten = improved = 0
    for name in before.stored:
        own, taken_over, left = (as_bits(one.read(name).reshape(-1)) for one in (before, between, after))
        outside = torch.ones(len(left), dtype=torch.bool)
        outside[mask.indices.get(name, torch.empty(0)).long()] = False
        assert torch.equal(left[outside], taken_over[outside]), name
        forgotten += int((taken_over != own).sum())
        improved += int((left != taken_over).sum())
    assert forgotten > 0 and improved > 0


@pytest.mark.invariant(
    "The second training starts from the first's model, has it as reference, and leaves the run's result."
)
def test_improving_starts_from_what_forgetting_left_and_has_it_for_reference(
    run: Path, tmp_path: Path
) -> None:
    """As improving alone in a run whose start is the model that forgot: DPO's weights depend on the reference."""
    alone = RunFolder(tmp_path)
    shutil.copy(run / "03-pairs.jsonl", tmp_path)
    alone.start.mkdir()
    start = write_start(alone, run / "06-forget" / "model")
    located = ImportanceMap.load(RunFolder(run).importance)
    own = {**located.metadata, "base_fingerprint": start.fingerprint}
    replace(located, metadata=own).save(alone.importance)
    counts = improve.run(tiny(tmp_path, *QUICK, "forget=null", "score=null"), alone)
    assert counts["steps"] > 1
    found = fingerprint(alone.improve / "model")
    assert found == fingerprint(run / "07-improve" / "model") != start.fingerprint


def test_forgetting_starts_from_the_runs_start(run: Path, tmp_path: Path) -> None:
    """As forgetting alone."""
    alone = RunFolder(tmp_path)
    for name in ("03-wrong.jsonl", "04-importance.safetensors", "05-token-scores.parquet"):
        shutil.copy(run / name, tmp_path)
    alone.start.mkdir()
    write_start(alone, Path(read_start(RunFolder(run)).model))
    forget.run(tiny(tmp_path, *QUICK, "improve=null"), alone)
    assert fingerprint(alone.forget / "model") == fingerprint(run / "06-forget" / "model")


def test_what_is_evaluated_and_shown_is_in_the_order_of_training(run: Path) -> None:
    folder = RunFolder(run)
    models = read_json(folder.evaluation)["models"]
    assert {name: model["label"] for name, model in models.items()} == {
        "forgotten": "after forgetting",
        "aligned": "aligned",
    }
    stages = read_json(folder.manifest)["stages"]
    seconds = {name: stages[name]["seconds"] for name in ("locate", "score", "forget", "improve")}
    assert models["aligned"]["seconds"] == pytest.approx(sum(seconds.values()))
    assert models["forgotten"]["seconds"] == pytest.approx(sum(seconds.values()) - seconds["improve"])
    shown = view(run)
    assert list(shown.curves) == list(shown.masks) == ["forget", "improve"]
    assert list(_losses(tiny(run.parent, *QUICK), folder)) == ["forget", "improve"]


def test_without_forgetting_improving_reads_nothing_that_it_left(run: Path, tmp_path: Path) -> None:
    """A run that no longer forgets learns from its start, and is again the run that it was if it forgets again."""
    folder = tmp_path / run.name
    shutil.copytree(run, folder)
    inputs = [read_json(folder / "manifest.json")["stages"]["improve"]["inputs"]]
    for more in (["forget=null", "score=null"], []):
        run_all(tiny(tmp_path, *QUICK, *more), until="improve")
        inputs.append(read_json(folder / "manifest.json")["stages"]["improve"]["inputs"])
    assert ["06-forget" in found for found in inputs] == [True, False, True]
    assert inputs[0] == inputs[2]
    assert fingerprint(folder / "07-improve" / "model") == fingerprint(run / "07-improve" / "model")
