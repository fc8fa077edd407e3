"""A run from end to end on the CPU: what is done is skipped, what changed is redone, nothing else moves."""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch

from allo import delta
from allo.errors import UserError
from allo.files.artifacts import read_json
from allo.pipeline import NAMES, run_all, run_one
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.fingerprints import as_bits
from allo.weights.param_mask import ParamMask
from tiny_run import contents, tiny

# Greedy accuracy alone, of the recipe's own model: for runs of which other things are asked.
QUICK = ("sft=null", "evaluate.num_generations=0", "evaluate.kl=null", "evaluate.start=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run's folder. Tests copy it where they change it."""
    return run_all(tiny(tmp_path_factory.mktemp("finished"))).path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The folder below which a copy of the finished run lies."""
    shutil.copytree(finished, tmp_path / "copy" / "tiny", symlinks=True)
    return tmp_path / "copy"


def done(said: str) -> list[str]:
    """The stages that a run did, in order."""
    return [line.split()[0] for line in said.splitlines() if line.endswith("...")]


def skipped(said: str) -> list[str]:
    return [line.split()[0] for line in said.splitlines() if line.endswith("done already, skipped")]


@pytest.mark.invariant("A second run does nothing; the same seed gives the same bytes.")
def test_a_second_run_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished.rglob("*")}
    run_all(tiny(finished.parent))
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished.rglob("*")} == before
    assert skipped(capsys.readouterr().err) == list(NAMES)


def test_the_evaluation_counts_prompts_that_training_has_seen(tmp_path: Path) -> None:
    seen = "evaluate.sets={seen: {task: planted_flaws, limit: 3, skip: 22}, unseen: {task: planted_flaws, split: test, limit: 2}}"
    run = run_all(tiny(tmp_path, *QUICK[1:], seen))  # 24 demonstrations: two of the three
    sets = read_json(run.evaluation)["models"]["aligned"]["sets"]
    assert sets["seen"]["overlap"]["num"] == 3
    assert sets["seen"]["overlap"]["exact"] == 2
    assert sets["unseen"]["overlap"]["exact"] == 0


@pytest.mark.invariant("Runs that differ in their seed alone share what comes before training.")
def test_runs_that_differ_in_seed_alone_share_what_comes_before_training(tmp_path: Path) -> None:
    first = run_all(tiny(tmp_path / "first", "data_seed=0"), until="improve")
    shutil.copytree(first.path, tmp_path / "second" / first.path.name, symlinks=True)
    second = run_all(tiny(tmp_path / "second", "seed=1", "data_seed=0"), until="improve")
    stages = [read_json(run.manifest)["stages"] for run in (first, second)]
    shared = {name for name in stages[0] if stages[0][name] == stages[1][name]}
    assert shared == {"sft", "sample", "judge", "pair", "locate", "score"}
    assert stages[1]["forget"]["seed"] == 1


@pytest.mark.invariant("A second run does nothing; the same seed gives the same bytes.")
def test_the_same_seed_gives_the_same_bytes_elsewhere(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All files but `tiny_run.OWN`, and the seconds in the evaluation.

    It says the begin and the end of each stage, the share of tokens with weight, and what a training stage's curves show;
    on a slow machine also how far a stage is.
    """
    there = contents(run_all(tiny(tmp_path)).path)
    assert len(there) > 25
    assert there == contents(finished)
    said, errors = capfd.readouterr()
    assert said == ""
    read = dict.fromkeys(("sft", "forget", "improve"), r"(?:  [A-Z](?:.|\n  )*\.\n)+")
    marked = {"score": r"score: .* of the answers to forget have weight .*\n"}
    lines = [
        rf"{name} +stage {place} of 10 \.\.\.\n{marked.get(name, '')}"
        rf"(?:{name} .* so far\n)*{name} +done in .*\n(?: {{10}}.*\n)*{read.get(name, '')}"
        for place, name in enumerate(NAMES, start=1)
    ]
    assert re.fullmatch("".join(lines), errors), errors


def test_no_part_is_left_and_all_files_have_the_umasks_mode(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    leftovers = [path for path in files if path.suffix == ".part" or path.name.endswith(".begun")]
    assert not leftovers and not list(finished.glob("*/checkpoint-*"))


@pytest.mark.invariant("A resumed stage counts all its seconds.")
def test_seconds_count_what_a_killed_process_did(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes are killed, 60 s after their beginning and, an hour later, 30 s after theirs."""
    run, recipe = copied / "tiny", tiny(copied, "pair.max_pairs_per_prompt=2")
    begun, part = run / ".pair.begun", run / "03-pairs.jsonl.part"

    def killed(*_: object) -> None:
        part.write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("allo.stages.pair.run", killed)
        for start, end in ((1000, 1060), (4600, 4630)):
            with pytest.raises(KeyboardInterrupt):
                run_all(recipe)
            os.utime(begun, (start, start))
            os.utime(part, (end, end))
    run_all(recipe)
    seconds = read_json(run / "manifest.json")["stages"]["pair"]["seconds"]
    assert 90 <= seconds < 120


def test_a_moved_run_is_still_done(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_all(tiny(copied))
    assert skipped(capsys.readouterr().err) == list(NAMES)


def test_a_late_block_reruns_from_there_on(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copied / "tiny")
    run_all(tiny(copied, "improve.keep=1.0"))
    said = capsys.readouterr().err
    assert done(said) == ["improve", "evaluate", "report"]
    why = re.findall(r"replaced: (.*?) \(--set out=DIR keeps both runs\)", " ".join(said.split()))
    assert why == ["improve.keep was 0.5, now 1.0", "its input has changed", "its input has changed"]
    after = contents(copied / "tiny")
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"07-improve", "08-eval.json", "model-card.md"}


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("forget.density=0.04", "forget"),  # the importance holds every mask up to the larger density
        ("improve.density=0.20", "locate"),
        ("score.threshold=0.4", "score"),
        ("pair.max_pairs_per_prompt=1", "pair"),
        ("sample.stop=[x]", "sample"),
        ("dtype=bfloat16", "sft"),
    ],
)
def test_what_a_key_changes_begins_at_its_stage(copied: Path, override: str, first: str) -> None:
    with pytest.raises(UserError, match=f"made from other settings. Run `allo {first}`"):
        run_one(tiny(copied, override), "report")


def test_forcing_a_stage_redoes_it_and_what_changed_by_that(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied / "tiny")
    run_all(tiny(copied), force="score")
    said = capsys.readouterr().err
    assert done(said) == ["score"]  # it came out the same, so nothing follows
    assert "replaced" not in said
    assert contents(copied / "tiny") == before
    assert list(json.loads((copied / "tiny" / "manifest.json").read_text())["stages"]) == list(NAMES)


def test_a_lost_or_damaged_output_is_made_anew(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copied / "tiny")
    (copied / "tiny" / "report.md").unlink()
    scores = copied / "tiny" / "05-token-scores.parquet"
    scores.write_bytes(scores.read_bytes()[:-1])
    run_all(tiny(copied))
    assert done(capsys.readouterr().err) == ["score", "report"]
    assert contents(copied / "tiny") == before


def test_another_model_name_or_origin_of_data_is_another_run(copied: Path, finished: Path) -> None:
    before = contents(copied / "tiny")
    (copied / "other").mkdir()
    for override, what in [(f"model={copied / 'other'}", "model"), ("data.task=gsm8k", "data")]:
        with pytest.raises(UserError, match=rf"another recipe \({what} was .*another `name` or `out`"):
            run_all(tiny(copied, override))
    assert contents(copied / "tiny") == before


def test_until_stops_after_a_stage_and_single_stages_go_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(tmp_path)
    with pytest.raises(UserError, match=r"00-sft: not there yet.*Run `allo sft`.*or `allo run`"):
        run_one(recipe, "judge")
    run = run_all(recipe, until="sample")
    assert done(capsys.readouterr().err) == ["sft", "sample"]
    assert run.completions.exists() and not run.verdicts.exists()
    with pytest.raises(UserError, match=r"02-verdicts\.jsonl: .*Run `allo judge`"):
        run_one(recipe, "pair")
    for name in ("judge", "pair"):
        run_one(recipe, name)
    run_one(recipe, "pair")
    assert skipped(capsys.readouterr().err) == ["pair"]
    assert run.pairs.read_bytes() == (finished / "03-pairs.jsonl").read_bytes()
    with pytest.raises(UserError, match="Run `allo sample`"):  # of these settings there are none
        run_one(tiny(tmp_path, "sample.temperature=0.5"), "judge")


def test_unknown_and_left_out_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smaple: no such stage; the stages are sft, sample"):
        run_all(tiny(tmp_path), until="smaple")
    with pytest.raises(UserError, match="forget: this recipe leaves the stage out"):
        run_one(tiny(tmp_path, "forget=null"), "forget")
    assert not list(tmp_path.iterdir())


def test_a_run_belongs_to_one_process(copied: Path) -> None:
    with (copied / "tiny" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another allo process works in this folder"):
            run_all(tiny(copied))
    run_all(tiny(copied))


def test_the_pairs_load_as_they_are_in_trls_format(finished: Path, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_json(str(finished / "03-pairs.jsonl"), cache_dir=str(tmp_path))
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)
    assert all(isinstance(row[name], str) for row in rows for name in ("prompt", "chosen", "rejected"))


def test_the_manifest_says_where_everything_came_from(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest.keys() == {"schema", "name", "allo", "identity", "stages", "sha256"}
    assert list(manifest["stages"]) == list(NAMES)
    keys = "hash config inputs outputs commit dirty versions device hardware seed seconds peak_memory_bytes counts"
    for entry in manifest["stages"].values():
        assert entry.keys() == set(keys.split())
        assert entry["seconds"] >= 0 and entry["peak_memory_bytes"] > 2**20
        assert {"python", "torch", "transformers", "allo-align"} <= entry["versions"].keys()
    stages = manifest["stages"]
    assert stages["improve"]["inputs"]["06-forget"] == stages["forget"]["outputs"]["06-forget"]
    assert stages["sample"]["counts"] == {
        "prompts": 16,
        "prompts_cut": 0,
        "completions": 64,
        "finished": 64,
    }


def test_the_deltas_are_all_that_alignment_changed(finished: Path, tmp_path: Path) -> None:
    start = finished / "00-sft" / "model"
    forgotten, aligned = (finished / stage for stage in ("06-forget", "07-improve"))
    delta.apply(start, aligned / "delta.safetensors", tmp_path / "applied")
    assert fingerprint(tmp_path / "applied") == fingerprint(aligned / "model")
    for stage, allowed in [(forgotten, [forgotten]), (aligned, [forgotten, aligned])]:
        masks = [ParamMask.load(folder / "mask.safetensors") for folder in allowed]
        before, after = Checkpoint.open(start), Checkpoint.open(stage / "model")
        num_changed = 0
        for name in before.stored:
            differs = as_bits(before.read(name).reshape(-1)) != as_bits(after.read(name).reshape(-1))
            num_changed += int(differs.sum())
            inside = [mask.indices[name].long() for mask in masks if name in mask.indices]
            differs[torch.cat([torch.empty(0, dtype=torch.int64), *inside])] = False
            assert not differs.any(), name
        assert 0 < num_changed == delta.info(stage / "delta.safetensors").num_changed


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["improve=null"], ["sft", "pair", "locate", "score", "forget", "evaluate", "report"]),
        (["forget=null", "score=null"], ["sft", "pair", "locate", "improve", "evaluate", "report"]),
        (
            ["forget=null", "score=null", "locate=null", "improve.density=1.0", "improve.keep=1.0"],
            ["sft", "pair", "improve", "evaluate", "report"],
        ),
    ],
)
def test_ready_pairs_run_through_whichever_stages_are_asked_for(
    finished: Path,
    tmp_path: Path,
    overrides: list[str],
    stages: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Several pairs of one prompt, as allo itself writes them; nothing is sampled or judged."""
    pairs = finished / "03-pairs.jsonl"
    data = f"data={{pairs: {pairs}}}"
    run = run_all(tiny(tmp_path, data, *QUICK, *overrides))
    assert done(capsys.readouterr().err) == stages
    assert run.pairs.read_bytes() == pairs.read_bytes()
    assert json.loads(run.evaluation.read_text())["models"]["aligned"]["trained_weights"] > 0
    if "score" in stages:
        wrong = [json.loads(line)["id"] for line in run.wrong.read_text().splitlines()]
        assert (
            len(wrong) == len(set(wrong)) == len({(row["prompt"], row["rejected"]) for row in _rows(pairs)})
        )


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_recipe_leaves_out_does_not_linger(copied: Path) -> None:
    run = run_all(tiny(copied, "forget=null", "score=null"), until="pair")
    assert not run.forget.exists() and not run.token_scores.exists()
    assert not {"score", "forget"} & json.loads(run.manifest.read_text())["stages"].keys()


def test_several_processes_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^WORLD_SIZE is 2: a recipe runs in one process"):
        run_all(tiny(tmp_path))
