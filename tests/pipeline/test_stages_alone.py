"""The order of stages, with stages that only write a line: what runs, what is skipped, recorded, resumed or removed."""

import os
import re
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from allo import pipeline
from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json, sha256_json, write_json
from allo.files.stage import Stage
from allo.pipeline import NAMES, named_files, progress, run_all, run_one, stages_of, value_at
from allo.recipe import Recipe, save_recipe
from tiny_run import LAB, tiny

Did = list[str]


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> Did:
    """The stages that ran, and `check` for each check of the input."""
    found: Did = []

    def run(stage: Stage, recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
        found.append(stage.name)
        inputs = [file.read_text() for name in stage.reads for file in pipeline._files(folder.path / name)]
        for name in stage.writes:
            path = folder.path / name
            assert not path.exists(), "files of other settings are gone before the stage begins"
            file = path if path.suffix else path / "file"  # a stage may write a folder
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} {recipe.max_length} {len(''.join(inputs))}")
        return {"written": len(stage.writes)}

    monkeypatch.setattr(Stage, "run", run)
    monkeypatch.setattr("allo.stages.explain.sentences_of", lambda *_: ())  # the files hold no curves
    monkeypatch.setattr(
        pipeline, "_check", lambda recipe: found.append(f"check{recipe.name.removeprefix('tiny')}")
    )
    return found


def run(recipe: Recipe, did: Did, **options: Any) -> Did:
    """Return what a run did."""
    did.clear()
    run_all(recipe, **options)
    return did.copy()


def test_input_is_checked_once_before_the_first_stage_and_never_for_a_report(
    tmp_path: Path, did: Did
) -> None:
    recipe = tiny(tmp_path)
    assert run(recipe, did, until="sample") == ["check", "sft", "sample"]
    assert run(recipe, did, until="sample") == []
    assert run(recipe, did, until="evaluate") == ["check", *NAMES[2:-1]]
    assert run(recipe, did) == ["report"]
    did.clear()
    run_one(recipe, "report", force=True)
    run_one(recipe, "report")
    assert did == ["report"]


def test_a_forced_stage_runs_again_and_those_that_read_something_new(tmp_path: Path, did: Did) -> None:
    recipe = tiny(tmp_path)
    run(recipe, did)
    assert run(recipe, did, force="judge") == ["check", "judge"], "it came out the same"
    did.clear()
    run_one(recipe, "sample", force=True)
    assert did == ["check", "sample"]
    (recipe.run_folder / "02-verdicts.jsonl").unlink()
    with pytest.raises(UserError, match=r"02-verdicts\.jsonl: not there yet.*Run `allo judge`"):
        run_one(recipe, "pair")
    (recipe.run_folder / "01-completions.jsonl").write_text("something longer than it was, and other")
    assert run(recipe, did)[:3] == ["check", "sample", "judge"]
    for name in ("sampel", "evaluation"):
        with pytest.raises(UserError, match=f"{name}: no such stage"):
            run_all(recipe, force=name)


def test_progress_is_what_a_run_would_skip_and_writes_nothing(tmp_path: Path, did: Did) -> None:
    recipe = tiny(tmp_path)
    assert progress(recipe) == dict.fromkeys(NAMES, False) and not recipe.run_folder.exists()
    run(recipe, did, until="locate")
    (recipe.run_folder / ".hashes.json").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in recipe.run_folder.rglob("*")}
    expected = {name: place <= NAMES.index("locate") for place, name in enumerate(NAMES)}
    assert progress(recipe) == expected
    assert {path: path.stat().st_mtime_ns for path in recipe.run_folder.rglob("*")} == before
    changed = progress(tiny(tmp_path, "judge.verifier=choice"))
    assert [name for name, done in changed.items() if done] == ["sft", "sample"]
    (recipe.run_folder / "00-sft" / "file").write_text("other")
    assert not any(progress(recipe).values()), "after an unfinished stage, all may run again"
    with pytest.raises(UserError, match="another recipe"):
        progress(tiny(tmp_path, "data.task=gsm8k"))


def test_a_record_has_what_the_stage_was_made_from(tmp_path: Path, did: Did) -> None:
    recipe = tiny(tmp_path, "seed=3", "data_seed=5")
    run(recipe, did)
    manifest = read_json(recipe.run_folder / "manifest.json")
    assert (manifest["schema"], manifest["name"], list(manifest["stages"])) == (1, "tiny", list(NAMES))
    for stage in stages_of(recipe):
        entry = manifest["stages"][stage.name]
        assert entry["config"] == {key: value_at(recipe, key) for key in stage.keys}
        assert set(stage.reads) - entry["inputs"].keys() <= {"round-1/03-pairs.jsonl"}
        assert entry["outputs"].keys() == set(stage.writes)
        made_from = {"stage": stage.name, "config": entry["config"], "inputs": entry["inputs"]}
        assert entry["hash"] == sha256_json(made_from)
        assert entry["counts"] == {"written": len(stage.writes)} and entry["device"] == "cpu"
        assert entry["seed"] == (3 if "seed" in stage.keys else 5)
        assert 0 <= entry["seconds"] < 60 and entry["seconds"] == round(entry["seconds"], 3)
    assert str(LAB) in manifest["stages"]["sft"]["inputs"], "the model's files, not only its name"
    assert not list(recipe.run_folder.glob(".*.begun"))
    assert (recipe.run_folder / ".hashes.json").exists(), "large files are not read again"


@pytest.mark.parametrize("same", [True, False])
def test_an_interrupted_stage_goes_on_if_nothing_changed(
    same: bool, tmp_path: Path, did: Did, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seconds are those up to its last saved file, of every process."""
    recipe = tiny(tmp_path)
    run(recipe, did, until="sample")
    folder = recipe.run_folder
    part, begun = folder / "02-verdicts.jsonl.part", folder / ".judge.begun"
    with monkeypatch.context() as patched:
        patched.setattr(Stage, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for start, end in ((1000, 1040), (5000, 5002), (9000, 8000)):  # the third saved nothing
            with pytest.raises(KeyboardInterrupt):
                run_all(recipe, until="judge")
            part.write_text("half")
            os.utime(begun, (start, start))
            os.utime(part, (end, end))
    there: list[bool] = []
    own = Stage.run
    monkeypatch.setattr(Stage, "run", lambda *all_: (there.append(part.exists()), own(*all_))[1])
    assert run(recipe if same else tiny(tmp_path, "judge.verifier=choice"), did, until="judge")[1:] == [
        "judge"
    ]
    seconds = read_json(folder / "manifest.json")["stages"]["judge"]["seconds"]
    assert there == [same]
    assert 42 <= seconds < 72 if same else seconds < 30


def test_a_process_killed_before_it_saved_anything_adds_no_seconds_and_forcing_starts_again(
    tmp_path: Path, did: Did
) -> None:
    recipe = tiny(tmp_path)
    run(recipe, did, until="sample")
    folder = RunFolder(recipe.run_folder)
    work = pipeline._work(stages_of(recipe)[2], recipe, folder)
    part = folder.path / "02-verdicts.jsonl.part"
    assert [work.begin(force=False) for _ in range(3)] == [0.0] * 3
    part.write_text("half")
    os.utime(folder.path / ".judge.begun", (1000, 1000))
    os.utime(part, (1007, 1007))
    assert work.begin(force=False) == 7 and part.exists()
    run_all(recipe, until="judge", force="judge")
    assert did[-1] == "judge" and not part.exists()
    assert read_json(folder.manifest)["stages"]["judge"]["seconds"] < 7


FULL = "Error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("raised", "free", "expected"),
    [
        (OSError(28, "No space left on device"), 1 << 30, "no space left on the disk"),
        (RuntimeError(FULL), 1 << 30, "no space left on the disk"),
        (RuntimeError("unexpected pos 64 vs 0"), (1 << 16) - 1, "no space left on the disk"),
        (RuntimeError("unexpected pos 64 vs 0"), 1 << 16, None),
        (UserError(FULL), 0, FULL),
        (ValueError("a fault"), 1 << 30, None),
    ],
)
def test_a_full_disk_is_said_and_every_other_error_is_itself(
    raised: Exception,
    free: int,
    expected: str | None,
    tmp_path: Path,
    did: Did,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tiny(tmp_path)
    run(recipe, did, until="sft")
    frees = {recipe.run_folder: free}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=frees.get(path, 1 << 40)))
    monkeypatch.setattr(Stage, "run", lambda *_: (_ for _ in ()).throw(raised))
    with pytest.raises((OSError, RuntimeError, ValueError, UserError)) as found:
        run_all(recipe, until="sample")
    if expected is None or isinstance(raised, UserError):
        assert found.value is raised
    else:
        assert isinstance(found.value, UserError) and expected in str(found.value)
        assert str(recipe.run_folder) in str(found.value)


def test_what_other_settings_made_is_removed_before_the_stage_and_a_harness_block_stays(
    tmp_path: Path, did: Did
) -> None:
    recipe = tiny(tmp_path)
    run(recipe, did, until="improve")
    folder = RunFolder(recipe.run_folder)
    harness = {"aligned": {"label": "aligned", "fingerprint": "f", "results": []}}
    write_json(folder.evaluation, {"schema": 1, "models": {}, "harness": harness})
    (folder.path / "08-eval.json.aligned.test.greedy.part").write_text("of other settings")
    work = pipeline._work(stages_of(recipe)[-2], recipe, folder)
    assert work.begin(force=False) == 0.0
    assert read_json(folder.evaluation) == {"schema": 1, "harness": harness}
    assert not list(folder.path.glob("08-eval.json.*"))


def test_files_of_stages_that_the_recipe_leaves_out_go_and_others_stay(tmp_path: Path, did: Did) -> None:
    recipe = tiny(tmp_path)
    run(recipe, did)
    for place in (
        *("round-1/03-pairs.jsonl", "round-2/01-completions.jsonl", "round-2/notes.txt"),
        *("round-3/.sample.begun", "round-3/02-verdicts.jsonl.part"),
    ):
        (recipe.run_folder / place).parent.mkdir(exist_ok=True)
        (recipe.run_folder / place).write_text("of an earlier recipe, but for the user's notes")
    assert run(tiny(tmp_path, "forget=null"), did, until="sample") == []
    left = {path.name for path in recipe.run_folder.iterdir() if not path.name.startswith(".")}
    assert not left & {"05-token-scores.parquet", "05-contrast", "06-forget", "round-1", "round-3"}
    assert [path.name for path in (recipe.run_folder / "round-2").iterdir()] == ["notes.txt"]
    assert {"00-sft", "03-wrong.jsonl", "04-warmup", "07-improve", "08-eval.json", "round-2"} <= left
    stages = read_json(recipe.run_folder / "manifest.json")["stages"]
    assert stages.keys() == set(NAMES) - {"score", "forget"}


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        ([], set()),
        (["forget=null"], {"score", "forget"}),
        (["improve=null"], {"improve"}),
        (["forget=null", "locate=null", "improve.density=1.0"], {"locate", "score", "forget"}),
        (["data={pairs: pairs.jsonl}"], {"sample", "judge"}),
    ],
)
def test_a_recipe_has_the_stages_that_it_needs(
    overrides: list[str], left_out: set[str], tmp_path: Path
) -> None:
    overrides += ["score=null"] if "forget=null" in overrides else []
    stages = [stage.name for stage in stages_of(tiny(tmp_path, *overrides))]
    assert stages == [name for name in NAMES if name not in left_out]


def test_in_rounds_the_alignment_is_repeated_and_each_part_is_its_rounds_own(tmp_path: Path) -> None:
    names = [stage.name for stage in stages_of(tiny(tmp_path, "rounds=2"))]
    assert names[0] == "sft" and names[-3:] == ["improve", "evaluate", "report"]
    for number in (1, 2):
        assert f"round-{number}/sample" in names and f"round-{number}/improve" in names


def test_only_one_process_may_run_a_recipe(tmp_path: Path, did: Did, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(tiny(tmp_path), did, until="sft") == ["check", "sft"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2"):
        run_all(tiny(tmp_path), until="sft")


def test_a_value_is_found_at_its_dotted_key_and_below_nothing_is_nothing(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "sft=null")
    assert value_at(recipe, "max_length") == 128
    assert value_at(recipe, "sample.max_new_tokens") == 40
    assert value_at(recipe, "sft.sources") is None and value_at(recipe, "sft") is None
    assert value_at(recipe, "evaluate.sets") == {"test": value_at(tiny(tmp_path), "evaluate")["sets"]["test"]}


@pytest.mark.parametrize("key", ["file", "pairs", "rewriter", "reward_model"])
def test_a_file_is_named_under_each_key_that_may_hold_one(key: str) -> None:
    assert list(named_files({"a": [{"b": {key: "~/x"}}, {key: None}]})) == [Path.home() / "x"]


@pytest.mark.parametrize("key", ["scorer", "loss", "criterion", "task", "beside"])
def test_own_code_is_named_under_each_key_that_may_hold_it(key: str) -> None:
    value: Any = ["/own.py:one", "advantage"] if key == "beside" else "/own.py:one"
    assert list(named_files({"a": {key: value}})) == [Path("/own.py")]
    assert list(named_files({"a": {key: None}, "b": {"name": "/own.py:one"}})) == []


def test_every_local_file_of_a_configuration_is_named(tmp_path: Path) -> None:
    for name in ("test.jsonl", "test.jsonl.gz", "train.jsonl"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text("")
    code = tmp_path / "own.py"
    code.write_text("")
    config = {
        "data_folder": str(tmp_path),
        "sets": [{"task": "mine", "split": "test"}, {"file": "~/rows.jsonl", "task": None}],
        "judge": {"reward_model": "/judge", "rewriter": "/rewriter", "pairs": "", "beside": [f"{code}:one"]},
        "training": {"loss": "ipo", "scorer": f"{code}:two", "criterion": None},
        "data": {"task": f"{code}:three", "split": "test"},
    }
    found = list(named_files(config))
    assert {path for path in found if path != code} == {
        *(tmp_path / "mine" / name for name in ("test.jsonl", "test.jsonl.gz")),
        *(Path.home() / "rows.jsonl", Path("/judge"), Path("/rewriter")),
    }
    assert found.count(code) == 3
    assert list(named_files({"sets": [{"task": "mine", "split": "test"}]})) == [], "without a folder of rows"
    assert list(named_files({"sets": [{"task": "mine", "split": "train"}]}, str(tmp_path))) == [
        tmp_path / "mine" / "train.jsonl"
    ]


def test_a_stage_says_when_it_begins_what_it_took_and_what_it_counts(
    tmp_path: Path, did: Did, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Stage.run
    monkeypatch.setattr(Stage, "run", lambda *some: own(*some) | {"steps": 7})
    recipe = tiny(tmp_path)
    run_all(recipe, until="sample")
    begun, ended = r"{} stage \d of 2 \.\.\.", r"{} done in less than 1 s: 1 written, 7 steps; in {}"
    lines = capsys.readouterr().err.splitlines()
    wrote = {"sft": "00-sft", "sample": "01-completions.jsonl"}
    for line, (name, form) in zip(lines, product(wrote, (begun, ended)), strict=True):
        assert re.fullmatch(form.format(name.ljust(9), wrote[name]), line), line
    run_one(recipe, "sample")
    run_all(recipe, until="sft")
    assert capsys.readouterr().err == "sample    done already, skipped\nsft       done already, skipped\n"
    entry = read_json(recipe.run_folder / "manifest.json")["stages"]["sample"]
    assert {"commit", "dirty", "versions", "hardware"} < entry.keys() and entry["peak_memory_bytes"] > 2**20


def test_the_resolved_recipe_lies_beside_and_is_written_only_if_it_changed(tmp_path: Path, did: Did) -> None:
    recipe = tiny(tmp_path)
    run(recipe, did, until="sft")
    path = recipe.run_folder / "recipe.yaml"
    assert path.read_text() == save_recipe(recipe)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    run(recipe, did, until="sft")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    other = tiny(tmp_path, "seed=4")
    run(other, did, until="sft")
    assert path.read_text() == save_recipe(other) != save_recipe(recipe)
    with pytest.raises(UserError, match="another recipe"):
        run(tiny(tmp_path, "data.task=gsm8k"), did, until="sft")
    assert path.read_text() == save_recipe(other)
    shutil.rmtree(path.parent)
    path.parent.write_text("in the way")
    with pytest.raises(
        UserError, match=rf"{path.parent}: cannot write the run folder \(.+\)\. Choose another"
    ):
        run(recipe, did, until="sft")


def test_a_damaged_manifest_is_removed_if_the_recipe_beside_it_is_this_one(tmp_path: Path, did: Did) -> None:
    recipe = tiny(tmp_path)
    run(recipe, did, until="sample")
    manifest = recipe.run_folder / "manifest.json"
    manifest.write_text("[]")
    assert run(recipe, did, until="sample") == ["check", "sft", "sample"]
    manifest.write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.json: "):
        run(tiny(tmp_path, "seed=4"), did, until="sample")


def test_the_check_of_the_input_has_what_the_recipe_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[Recipe, object]] = []
    monkeypatch.setattr(pipeline, "sources_read", lambda recipe: ("sources of", recipe))
    monkeypatch.setattr("allo.stages.check.check", lambda recipe, sources: checked.append((recipe, sources)))
    recipe = tiny(tmp_path)
    pipeline._check(recipe)
    assert checked == [(recipe, ("sources of", recipe))]


def test_a_stage_in_a_round_sees_the_rounds_recipe_and_a_file_made_otherwise_is_made_again(
    tmp_path: Path, did: Did
) -> None:
    recipe = tiny(tmp_path, "rounds=2")
    assert run(recipe, did, until="round-2/sample")[-1] == "round-2/sample"
    stages = read_json(recipe.run_folder / "manifest.json")["stages"]
    assert list(stages) == [stage.name for stage in stages_of(recipe)][: len(stages)]
    assert stages["round-1/sample"]["seed"] == recipe.seed_of_data != stages["round-2/sample"]["seed"]
    work = pipeline._work(stages_of(recipe)[0], recipe, RunFolder(recipe.run_folder))
    assert work.is_done and work.outputs().keys() == {"00-sft"}
    (recipe.run_folder / "00-sft" / "file").write_text("by hand")
    assert not pipeline._work(work.stage, recipe, work.run).is_done
    assert not pipeline._work(work.stage, tiny(tmp_path, "rounds=2", "dtype=bfloat16"), work.run).is_done
