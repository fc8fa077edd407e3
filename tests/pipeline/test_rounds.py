"""Rounds: each begins where the last ended, on fresh samples; their sum is one delta; nothing is done twice."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from allo import delta
from allo.compare.trials import preparations
from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json, read_jsonl
from allo.files.records import Completion
from allo.files.rounds import of_round
from allo.models.start import load_start, read_start
from allo.pipeline import run_all, run_one, stages_of
from allo.plan import stages_that_run_the_model
from allo.recipe import Recipe
from allo.report.read import view
from allo.sampling.completions import complete
from allo.tasks.sources import training_prompts
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.fingerprints import as_bits
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from tiny_run import contents, tiny

# The recipe's own model, one set of greedy answers, and in every round both trainings on half the problems.
QUICK = (
    *("sft=null", "data.limit=8", "evaluate.num_generations=0", "evaluate.kl=null", "evaluate.start=false"),
    *(
        "locate.criterion=magnitude",
        "score.scorer=confidence",
        "sample.batch_size=32",
        "evaluate.batch_size=8",
    ),
)
# Improving alone.
LEAST = (
    *(*QUICK, "forget=null", "score=null", "improve.training.learning_rate=2e-3"),
    "improve.training.lr_scheduler_type=constant",
)
TWO = (*QUICK, "rounds=2", "evaluate.likelihood_pairs=4")
ALIGNMENT = ("01-", "02-", "03-", "04-", "05-", "06-", "07-")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two rounds. Tests copy it where they change it."""
    return run_all(tiny(tmp_path_factory.mktemp("two"), *TWO)).path


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of improving alone."""
    return run_all(tiny(tmp_path_factory.mktemp("least"), *LEAST, "rounds=2")).path


@pytest.fixture
def copied(least: Path, tmp_path: Path) -> Path:
    shutil.copytree(least, tmp_path / "copy" / "tiny", symlinks=True)
    return tmp_path / "copy"


def done(said: str) -> list[str]:
    """The stages that a run did, in order."""
    return [line.split()[0] for line in said.splitlines() if line.endswith("...")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.stored}


def stages(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run / "manifest.json")["stages"]
    return found


def test_the_first_round_is_a_run_of_one_round(two: Path, tmp_path: Path) -> None:
    """Relocation says nothing about a single one."""
    one = run_all(tiny(tmp_path, *QUICK), until="improve").path
    expected = {name: data for name, data in contents(one).items() if name.startswith(ALIGNMENT)}
    found = {name: data for name, data in contents(two / "round-1").items() if name.startswith(ALIGNMENT)}
    assert found == expected
    before = read_json(one / "manifest.json")
    run_all(tiny(tmp_path, *QUICK, "relocate=false"), until="improve")
    assert read_json(one / "manifest.json") == before


def test_the_next_round_begins_where_the_last_ended(least: Path) -> None:
    begun = read_start(RunFolder(least / "round-2"))
    assert Path(begun.model) == least / "round-1" / "07-improve" / "model"
    assert begun.fingerprint == fingerprint(begun.model) != read_start(RunFolder(least)).fingerprint
    assert not (least / "round-2" / "00-sft" / "model").exists()


def texts(run: Path) -> list[str]:
    return [one.text for one in read_jsonl(RunFolder(run).completions, Completion)]


def sampled(recipe: Recipe, start: RunFolder, path: Path) -> list[str]:
    model, tokenizer = load_start(recipe, start)
    completed = complete(
        model,
        tokenizer,
        training_prompts(recipe),
        path=path,
        description="sample",
        max_length=recipe.max_length,
        seed=recipe.seed_of_data,
        **recipe.sample.decoding,
    )
    return [completion.text for completion in completed.completions]


def test_the_second_round_samples_the_model_that_it_begins_with(two: Path, tmp_path: Path) -> None:
    recipe = tiny(two.parent, *TWO)
    own, first = of_round(recipe, 2), RunFolder(two / "round-1")
    rows = texts(two / "round-2")
    assert rows == sampled(own, RunFolder(two / "round-2"), tmp_path / "again")
    assert rows != sampled(own, first, tmp_path / "other model")
    assert rows != texts(two / "round-1")


@pytest.mark.invariant("All rounds are one delta to the first start; killed ones end with the same bytes.")
def test_the_rounds_are_one_delta_to_the_first_start(two: Path, tmp_path: Path) -> None:
    start = Path(read_start(RunFolder(two)).model)
    delta.apply(start, two / "07-improve" / "delta.safetensors", tmp_path / "applied")
    last = fingerprint(two / "round-2" / "07-improve" / "model")
    assert fingerprint(tmp_path / "applied") == fingerprint(two / "07-improve" / "model") == last
    before, after = weights(start), weights(tmp_path / "applied")
    own = [ParamMask.load(path) for path in two.glob("round-*/0[67]-*/mask.safetensors")]
    united = ParamMask.load(two / "07-improve" / "mask.safetensors")
    assert len(own) == 4
    for name, theta in before.items():
        allowed = torch.zeros(theta.numel(), dtype=torch.bool)
        for mask in own:
            allowed[mask.indices.get(name, torch.empty(0)).long()] = True
        assert torch.equal(united.indices.get(name, torch.empty(0)).long(), allowed.nonzero().squeeze(1))
        differs = as_bits(theta.reshape(-1)) != as_bits(after[name].reshape(-1))
        assert not (differs & ~allowed).any(), name
    model = read_json(two / "08-eval.json")["models"]["aligned"]
    assert (
        model["trained_weights"] == united.num_selected == stages(two)["improve"]["counts"]["trained_weights"]
    )


def test_the_cost_is_all_rounds_and_what_they_sampled_for_themselves(two: Path) -> None:
    free = {"sft", "round-1/sample", "round-1/judge", "round-1/pair", "round-1/begin", "evaluate", "report"}
    seconds = sum(entry["seconds"] for name, entry in stages(two).items() if name not in free)
    assert read_json(two / "08-eval.json")["models"]["aligned"]["seconds"] == pytest.approx(seconds)


def test_likelihoods_are_of_the_first_starts_own_samples(two: Path) -> None:
    found = read_json(two / "08-eval.json")["models"]["aligned"]["likelihood"]
    assert found["num_pairs"] == 4
    assert found["chosen"] != 0 and not (two / "03-pairs.jsonl").exists()


def test_the_report_shows_every_rounds_curves(two: Path) -> None:
    shown = view(two)
    assert list(shown.curves) == [f"round-{n}/{stage}" for n in (1, 2) for stage in ("forget", "improve")]
    counts = [stages(two)[f"round-{n}/score"]["counts"] for n in (1, 2)]
    assert shown.credit is not None
    last = {"tokens": shown.credit.num_tokens, "weighted": shown.credit.num_weighted}
    assert last == {key: counts[1][key] for key in last} != {key: counts[0][key] for key in last}


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


@pytest.mark.invariant("All rounds are one delta to the first start; killed ones end with the same bytes.")
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are renamed into place: each process dies when it has brought some, between rounds or inside one."""
    recipe = tiny(tmp_path, *TWO)
    replace, left = os.replace, 0

    def dying(source: Any, target: Any) -> None:
        nonlocal left
        if Path(target).name not in (".hashes.json", "recipe.yaml", "complete"):
            left -= 1
            if left < 0:
                raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    kills: list[str] = []
    finished = False
    while not finished:
        left = 20
        try:
            run_all(recipe)
            finished = True
        except Killed:
            kills.append(max(map(str, (tmp_path / "tiny").rglob(".*.begun")), default="between"))
        assert len(kills) < 100
    assert any("round-2" in kill for kill in kills) and any("round-1" in kill for kill in kills)
    assert contents(tmp_path / "tiny") == contents(two)


def test_a_second_run_does_nothing_also_where_the_run_was_moved(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    run_all(tiny(copied, *LEAST, "rounds=2"))
    assert done(capsys.readouterr().err) == []
    changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert {path.name for path in changed} <= {"recipe.yaml", ".hashes.json"}


ROUND = ("begin", "sample", "judge", "pair", "locate", "improve")
END = ["improve", "evaluate", "report"]


def test_one_more_round_goes_on_from_the_last_and_one_less_comes_back(
    copied: Path, least: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(tiny(copied, *LEAST, "rounds=3"))
    assert done(capsys.readouterr().err) == [*(f"round-3/{name}" for name in ROUND), *END]
    assert list(stages(copied / "tiny"))[-4:] == ["round-3/improve", *END]
    run_all(tiny(copied, *LEAST, "rounds=2"))
    assert done(capsys.readouterr().err) == END
    assert contents(copied / "tiny") == contents(least)
    assert not (copied / "tiny" / "round-3").exists()


def test_a_run_of_one_round_leaves_no_rounds_behind(copied: Path) -> None:
    run_all(tiny(copied, *LEAST), until="sample")
    names = {path.name for path in (copied / "tiny").iterdir()}
    assert not any(name.startswith("round") for name in names)
    assert not any("/" in name for name in stages(copied / "tiny"))


@pytest.mark.parametrize(
    ("override", "first", "allowed"),
    [
        ("relocate=false", "round-2/locate", ["round-2/locate", "round-2/improve", *END]),
        (
            "improve.training.learning_rate=1e-3",
            "round-1/improve",
            ["round-1/improve", *(f"round-2/{name}" for name in ROUND), *END],
        ),
        ("evaluate.max_new_tokens=30", "evaluate", ["evaluate", "report"]),
    ],
)
def test_what_changed_is_done_anew_and_no_more(
    copied: Path, override: str, first: str, allowed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage whose inputs came out the same is not among them."""
    run_all(tiny(copied, *LEAST, "rounds=2", override))
    again = done(capsys.readouterr().err)
    assert again[0] == first
    assert again == [name for name in allowed if name in again]


@pytest.mark.slow
def test_a_changed_run_is_as_one_made_afresh(copied: Path, tmp_path: Path) -> None:
    changed = (*LEAST, "rounds=2", "improve.training.learning_rate=1e-3")
    expected = contents(run_all(tiny(tmp_path / "afresh", *changed), until="improve").path)
    found = contents(run_all(tiny(copied, *changed), until="improve").path)
    assert {name: found[name] for name in expected} == expected


def test_later_rounds_may_keep_the_first_importance(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied / "tiny"
    for _ in range(2):
        run_all(tiny(copied, *LEAST, "rounds=2", "relocate=false"))
    assert done(capsys.readouterr().err) == ["round-2/locate", "round-2/improve", *END]
    first, second = (ImportanceMap.load(RunFolder(run / f"round-{n}").importance) for n in (1, 2))
    assert first.indices.keys() == second.indices.keys()
    for name in first.indices:
        assert torch.equal(first.indices[name], second.indices[name])
        assert torch.equal(first.scores[name], second.scores[name])
    assert second.metadata["base_fingerprint"] == read_start(RunFolder(run / "round-2")).fingerprint
    assert not (run / "round-2" / "04-warmup").exists()


def test_without_improving_the_rounds_are_one_forgetting(tmp_path: Path) -> None:
    run = run_all(tiny(tmp_path, *QUICK, "improve=null", "rounds=2")).path
    assert fingerprint(run / "06-forget" / "model") == fingerprint(run / "round-2" / "06-forget" / "model")
    assert not (run / "07-improve").exists()
    assert "aligned" in read_json(run / "08-eval.json")["models"]


def test_a_stage_of_a_round_is_named_with_its_round(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny(copied, *LEAST, "rounds=2")
    run_all(recipe, force="round-2/pair")
    assert done(capsys.readouterr().err) == ["round-2/pair"]
    with pytest.raises(
        UserError, match=r"it has sft, round-1/begin, round-1/sample.*round-2/improve, improve"
    ):
        run_one(recipe, "sample")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data={pairs: pairs.jsonl}"], r"rounds sample anew: set rounds to 1"),
        (["relocate=false"], r"score\.scorer 'implicit' reads: choose another scorer, such as confidence"),
        (["evaluate.forgotten=true"], r"evaluate\.forgotten is for a single round"),
    ],
)
def test_what_rounds_cannot_do_is_refused_with_what_to_choose(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        tiny(tmp_path, "rounds=2", *overrides)
    tiny(tmp_path, *overrides)


def test_rounds_draw_with_seeds_of_their_own_in_one_order_of_prompts(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "rounds=3", "data.order=shuffled", "data_seed=5", "seed=2")
    rounds = [of_round(recipe, number) for number in (1, 2, 3)]
    assert (rounds[0].seed, rounds[0].seed_of_data) == (2, 5)
    assert len({seed for one in rounds for seed in (one.seed, one.seed_of_data)}) == 6
    taken = [[prompt.id for prompt in training_prompts(one)] for one in rounds]
    assert taken[0] == taken[1] == taken[2] == [prompt.id for prompt in training_prompts(recipe)]


def test_a_plan_is_of_one_round(tmp_path: Path) -> None:
    one, three = tiny(tmp_path), tiny(tmp_path, "rounds=3")
    assert stages_that_run_the_model(three) == stages_that_run_the_model(one)
    assert len(stages_of(three)) > 3 * 7 > len(stages_of(one))


def test_a_comparison_shares_the_first_rounds_samples_whatever_follows(tmp_path: Path) -> None:
    two, three = (preparations(tiny(tmp_path, f"rounds={number}")) for number in (2, 3))
    assert two == three
    assert [one.until for one in two] == ["round-1/pair", "round-1/score"]
