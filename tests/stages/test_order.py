"""The order of the two trainings: the second goes on from what the first left, and leaves the run's result."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from allo import delta
from allo.compare.trials import _losses
from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json
from allo.models.start import read_start, write_start
from allo.pipeline import run_all, stages_of
from allo.plan import stages_that_run_the_model
from allo.recipe import Recipe
from allo.report.read import view
from allo.stages import forget, improve
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.fingerprints import as_bits
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from tiny_run import contents, tiny

# The recipe's own model, one set of greedy answers, two steps or more of each training, at rates that show.
QUICK = (
    *("sft=null", "data.limit=8", "evaluate.num_generations=0", "evaluate.kl=null", "evaluate.start=false"),
    *("locate.criterion=magnitude", "score.scorer=confidence", "sample.batch_size=32"),
    *("forget.training.learning_rate=1e-3", "improve.training.learning_rate=1e-3"),
    *("forget.training.warmup_steps=0", "improve.training.warmup_steps=0"),
    *("forget.training.num_train_epochs=2", "improve.training.num_train_epochs=2"),
)
SWAPPED = (*QUICK, "order=improve_first")


def recipe(out: Path, *more: str) -> Recipe:
    return tiny(out, *SWAPPED, *more)


def stage_hashes(run: Path) -> dict[str, str]:
    return {name: entry["hash"] for name, entry in read_json(run / "manifest.json")["stages"].items()}


@pytest.fixture(scope="module")
def improved_first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(recipe(tmp_path_factory.mktemp("swapped"), "evaluate.forgotten=true")).path


@pytest.mark.invariant(
    "In either order the second training starts from the first's model, has it as reference, and leaves the run's result."
)
def test_the_last_delta_applied_to_the_start_is_the_last_model(improved_first: Path, tmp_path: Path) -> None:
    start = Path(read_start(RunFolder(improved_first)).model)
    improved, last = (improved_first / name for name in ("07-improve", "06-forget"))
    delta.apply(start, last / "delta.safetensors", tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(last / "model")
    mask = ParamMask.load(last / "mask.safetensors")
    before, between, after = (Checkpoint.open(one) for one in (start, improved / "model", last / "model"))
    kept = forgotten = 0
    for name in before.stored:
        own, taken_over, left = (as_bits(one.read(name).reshape(-1)) for one in (before, between, after))
        outside = torch.ones(len(left), dtype=torch.bool)
        outside[mask.indices.get(name, torch.empty(0)).long()] = False
        assert torch.equal(left[outside], taken_over[outside]), name
        kept += int((taken_over != own)[outside].sum())
        forgotten += int((left != taken_over).sum())
    assert kept > 0 and forgotten > 0


@pytest.mark.invariant(
    "In either order the second training starts from the first's model, has it as reference, and leaves the run's result."
)
def test_forgetting_starts_from_what_improving_left_and_has_it_for_reference(
    improved_first: Path, tmp_path: Path
) -> None:
    """As forgetting alone in a run whose start is the improved model: NPO's weights depend on the reference."""
    alone = RunFolder(tmp_path)
    for name in ("03-wrong.jsonl", "05-token-scores.parquet"):
        shutil.copy(improved_first / name, tmp_path)
    alone.start.mkdir()
    start = write_start(alone, improved_first / "07-improve" / "model")
    located = ImportanceMap.load(RunFolder(improved_first).importance)
    replace(located, metadata={**located.metadata, "base_fingerprint": start.fingerprint}).save(
        alone.importance
    )
    counts = forget.run(tiny(tmp_path, *QUICK, "improve=null"), alone)
    assert counts["steps"] > 1
    found = fingerprint(alone.forget / "model")
    assert found == fingerprint(improved_first / "06-forget" / "model") != start.fingerprint


def test_improving_starts_from_the_runs_start(improved_first: Path, tmp_path: Path) -> None:
    """As improving alone."""
    alone = RunFolder(tmp_path)
    for name in ("03-pairs.jsonl", "04-importance.safetensors"):
        shutil.copy(improved_first / name, tmp_path)
    alone.start.mkdir()
    write_start(alone, Path(read_start(RunFolder(improved_first)).model))
    improve.run(tiny(tmp_path, *QUICK, "forget=null", "score=null"), alone)
    assert fingerprint(alone.improve / "model") == fingerprint(improved_first / "07-improve" / "model")


def test_what_is_evaluated_and_shown_is_in_the_order_of_training(improved_first: Path) -> None:
    run = RunFolder(improved_first)
    models = read_json(run.evaluation)["models"]
    assert {name: model["label"] for name, model in models.items()} == {
        "improved": "after improving",
        "aligned": "aligned",
    }
    stages = read_json(run.manifest)["stages"]
    seconds = {name: stages[name]["seconds"] for name in ("locate", "score", "improve", "forget")}
    assert models["aligned"]["seconds"] == pytest.approx(sum(seconds.values()))
    assert models["improved"]["seconds"] == pytest.approx(seconds["locate"] + seconds["improve"])
    shown = view(improved_first)
    assert list(shown.curves) == list(shown.masks) == ["improve", "forget"]
    assert list(_losses(recipe(improved_first), run)) == ["improve", "forget"]


def test_the_second_training_alone_reads_what_the_first_left(tmp_path: Path) -> None:
    for order, first, second, left in (
        ("forget_first", "forget", "improve", "06-forget"),
        ("improve_first", "improve", "forget", "07-improve"),
    ):
        stages = {stage.name: stage for stage in stages_of(tiny(tmp_path, f"order={order}"))}
        assert [name for name in stages if name in ("forget", "improve")] == [first, second]
        trained = {"06-forget", "07-improve"}
        assert not trained & set(stages[first].reads)
        assert trained & set(stages[second].reads) == {left}
        assert all("order" not in stage.keys for stage in stages.values())
    assert stages_that_run_the_model(recipe(tmp_path))[-3:] == ["improve", "forget", "evaluate"]


def test_there_and_back_again_is_the_run_that_it_was(improved_first: Path, tmp_path: Path) -> None:
    """Both trainings are done anew in the other order, and nothing else."""
    folder = tmp_path / improved_first.name
    shutil.copytree(improved_first, folder)
    before, hashes = contents(folder), stage_hashes(folder)
    for order, last in (("forget_first", "improve"), ("improve_first", "forget")):
        run_all(recipe(tmp_path, "evaluate.forgotten=true", f"order={order}"), until=last)
        if last == "improve":
            found = stage_hashes(folder)
            assert list(found) == [*list(hashes)[:-4], "forget", "improve", "evaluate", "report"]
            assert {name for name in hashes if found[name] != hashes[name]} == {"forget", "improve"}
    assert (contents(folder), stage_hashes(folder)) == (before, hashes)


def test_rounds_end_with_the_last_training(tmp_path: Path) -> None:
    run = run_all(recipe(tmp_path, "rounds=2"), until="forget").path
    first, last = (run / f"round-{n}" / "06-forget" / "model" for n in (1, 2))
    assert fingerprint(run / "06-forget" / "model") == fingerprint(last) != fingerprint(first)
    assert Path(read_start(RunFolder(run / "round-2")).model) == first
    assert not (run / "07-improve").exists()
    union = ParamMask.load(run / "06-forget" / "mask.safetensors")
    wider = ParamMask.load(run / "round-1" / "07-improve" / "mask.safetensors")
    assert union.num_selected >= wider.num_selected


@pytest.mark.parametrize("missing", [["improve=null"], ["forget=null", "score=null"]])
def test_an_order_of_one_training_is_refused(tmp_path: Path, missing: list[str]) -> None:
    with pytest.raises(UserError, match="order improve_first needs both trainings, and only"):
        recipe(tmp_path, *missing)
