"""Comparisons: one recipe, many methods, the same samples, equal budgets; finished trials are not repeated."""

import json
from pathlib import Path
from typing import Any

import pytest

import synthetic_comparison as synthetic
from allo.compare import compare
from allo.compare.methods import METHODS, START, chosen, resolve
from allo.compare.problems import check_problems
from allo.compare.trials import RATE, Comparison, Trial
from allo.compare.tuning import accuracy, next_trials, tuned
from allo.errors import UserError
from allo.files.artifacts import held, read_json
from allo.recipe import Recipe
from allo.recipe.compare import Compare, Method
from tiny_run import tiny

VALIDATION = {"task": "planted_flaws", "split": "validation", "limit": 4}
# Greedy answers to a few problems: the tests here are about which trials are run, not about their figures.
FEW = (
    *("sft=null", "data.limit=8", "evaluate.kl=null", "evaluate.likelihood_pairs=4"),
    *("evaluate.sets.test.limit=4", "evaluate.num_generations=0"),
)
BLOCK: dict[str, Any] = {
    "validation": VALIDATION,
    "rates": [1.0, 2.0],
    "extra_trials": 1,
    "beyond": 1,
    "tuning_seeds": [9],
    "seeds": [0, 1],
}


def recipe_of(out: Path, *more: str, **changes: Any) -> Recipe:
    block = json.dumps(BLOCK | changes)
    return tiny(out, *FEW, *more, f"compare={block}")


def block_of(**changes: Any) -> Compare:
    return Compare.model_validate(BLOCK | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(recipe_of(tmp_path_factory.mktemp("compared")), methods=["dpo", "allo"])


def trials(comparison: Comparison) -> dict[str, dict[str, Any]]:
    files = sorted((comparison.path / "trials").glob("*/*.json"))
    return {f"{file.parent.name}/{file.stem}": read_json(file) for file in files}


def record(trial: Trial) -> dict[str, Any]:
    """Return the content of a trial's file, except its recipe."""
    sets = synthetic.Draw().sets(0.5, trial.seed, ("validation",))
    return synthetic.trial(trial.method.name, trial.seed, sets, purpose=trial.purpose)


def test_every_method_has_its_budget_and_every_seed_its_test(finished: Comparison) -> None:
    found = list(trials(finished).values())
    count = {
        (method, purpose): sum(one["method"] == method and one["purpose"] == purpose for one in found)
        for method in ("allo", "dpo", START)
        for purpose in ("tune", "test")
    }
    assert [count[method, "test"] for method in ("allo", "dpo", START)] == [2, 2, 2]
    assert count[START, "tune"] == 1
    for method in ("allo", "dpo"):
        assert 3 <= count[method, "tune"] <= 3 + BLOCK["beyond"]
    assert {one["seed"] for one in found if one["purpose"] == "tune"} == {9}


@pytest.mark.invariant(
    "Every method has the same number of trials, none of them on problems that are tested on."
)
def test_tuning_problems_are_not_tested_on_and_all_methods_get_the_same_problems(
    finished: Comparison,
) -> None:
    found = trials(finished).values()
    assert {tuple(one["sets"]) for one in found if one["purpose"] == "tune"} == {("validation",)}
    tested = [one["sets"] for one in found if one["purpose"] == "test"]
    assert all("validation" not in sets for sets in tested)
    assert len({tuple(sets["test"]["prompts"]) for sets in tested}) == 1


def test_samples_are_shared_between_methods_and_seeds(finished: Comparison) -> None:
    """There are two preparations: pairs once, and importance with scores once."""
    made = sorted(path.name.split("-")[0] for path in (finished.path / "shared").iterdir())
    assert made == ["pair", "score"]


def test_the_work_folders_go_and_a_trial_says_what_made_it(finished: Comparison) -> None:
    assert not list((finished.path / "work").iterdir())
    one = trials(finished)["allo/" + Trial(resolve("allo", METHODS), {RATE: 1.0}, 9, "tune").name]
    assert one["recipe"]["seed"] == 9 and one["recipe"]["improve"]["training"]["learning_rate"] == 2e-4
    assert one["cost"]["trained_weights"] > 0 and one["versions"]["torch"] and one["commit"]


def test_a_second_comparison_does_nothing_and_a_lost_trial_alone_is_done_again(
    finished: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    base = recipe_of(finished.path.parent)
    before = {path: path.stat().st_mtime_ns for path in (finished.path / "trials").rglob("*.json")}
    compare(base, methods=["dpo", "allo"])
    assert {path: path.stat().st_mtime_ns for path in (finished.path / "trials").rglob("*.json")} == before
    lost = next((finished.path / "trials" / "dpo").glob("test-*-seed-1.json"))
    kept = lost.read_text()
    lost.unlink()
    compare(base, methods=["dpo", "allo"])
    again, first = read_json(lost), json.loads(kept)
    assert again["sets"] == first["sets"]
    assert capsys.readouterr().err.count("dpo test-") == 1


def test_a_changed_recipe_is_another_trial(finished: Comparison) -> None:
    trial = Trial(resolve("allo", METHODS), {RATE: 1.0}, 9, "tune")
    base = recipe_of(finished.path.parent)
    assert finished.result(trial, trial.recipe(base)) is not None
    assert finished.result(trial, trial.recipe(base.model_copy(update={"max_length": 100}))) is None


def test_a_key_missing_from_an_older_recipe_counts_as_its_default(tmp_path: Path) -> None:
    comparison, base = Comparison(tmp_path), recipe_of(tmp_path)
    trial = Trial(resolve("allo", METHODS), {RATE: 1.0}, 9, "tune")
    recipe = trial.recipe(base)
    fields = recipe.model_dump(mode="json", exclude={"out", "compare", "relocate"})
    comparison.file(trial).parent.mkdir(parents=True)
    comparison.file(trial).write_text(json.dumps(record(trial) | {"recipe": fields}))
    assert comparison.result(trial, recipe) is not None
    assert comparison.result(trial, recipe.model_copy(update={"relocate": False})) is None
    comparison.file(trial).write_text(json.dumps({"recipe": fields | {"a_key_of_old": 1}}))
    assert comparison.result(trial, recipe) is None


@pytest.mark.parametrize(
    ("old", "counts"),
    [
        ({"momentum": 0.0, "round_prompts": "same", "order": "forget_first"}, True),
        ({"momentum": 0.5}, False),
        ({"round_prompts": "next"}, False),
        ({"order": "improve_first"}, False),
    ],
)
def test_a_key_that_is_gone_counts_at_its_old_default_alone(
    tmp_path: Path, old: dict[str, Any], counts: bool
) -> None:
    comparison, base = Comparison(tmp_path), recipe_of(tmp_path)
    trial = Trial(resolve("allo", METHODS), {RATE: 1.0}, 9, "tune")
    recipe = trial.recipe(base)
    fields = recipe.model_dump(mode="json", exclude={"out", "compare"})
    comparison.file(trial).parent.mkdir(parents=True)
    comparison.file(trial).write_text(json.dumps(record(trial) | {"recipe": fields | old}))
    assert (comparison.result(trial, recipe) is not None) == counts


def test_resampling_gives_each_seed_its_own_data(tmp_path: Path) -> None:
    trial = Trial(resolve("allo", METHODS), {RATE: 1.0}, 5, "test")
    shared, fresh = (trial.recipe(recipe_of(tmp_path, resample=flag)) for flag in (False, True))
    assert (shared.seed, shared.data_seed) == (5, 0)
    assert (fresh.seed, fresh.data_seed) == (5, 5)


def test_a_rate_is_a_factor_on_each_stages_own_and_the_methods_scale(tmp_path: Path) -> None:
    base = recipe_of(tmp_path, methods={"wide": {"like": "allo", "scale": 3.0}})
    assert base.compare is not None and base.forget is not None and base.improve is not None
    made = Trial(resolve("wide", METHODS | base.compare.methods), {RATE: 0.5}, 0, "tune").recipe(base)
    assert made.forget is not None and made.improve is not None
    assert made.forget.training.learning_rate == 1.5 * base.forget.training.learning_rate
    assert made.improve.training.learning_rate == 1.5 * base.improve.training.learning_rate


def test_a_failed_trial_is_recorded_and_never_the_best(tmp_path: Path) -> None:
    """At an absurd rate the loss is no longer finite; the other rate is chosen."""
    comparison = compare(
        recipe_of(tmp_path, "data.limit=16", rates=[1.0, 1e38], extra_trials=0, seeds=[0]),
        methods=["dpo"],
        seeds=[0],
    )
    failures = list((comparison.path / "failed" / "dpo").iterdir())
    assert len(failures) == 1 and "stopped" in read_json(failures[0])["failed"]
    tested = next((comparison.path / "trials" / "dpo").glob("test-*"))
    assert read_json(tested)["settings"] == {RATE: 1.0}


def test_test_problems_are_neither_tuned_nor_trained_on(tmp_path: Path) -> None:
    test = {"task": "planted_flaws", "split": "test", "limit": 4}
    for changes in ({"validation": test}, {}):
        base = recipe_of(tmp_path, **changes)
        if not changes:
            base = base.model_copy(update={"data": base.data.model_copy(update={"split": "test"})})
        with pytest.raises(UserError, match=r"evaluate\.sets\.test and (compare|data).*share"):
            check_problems(base)


def test_problems_without_an_answer_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "open.jsonl").write_text('{"id": "unanswered", "prompt": "Hello"}\n')
    base = recipe_of(tmp_path, validation={"file": str(tmp_path / "open.jsonl")})
    with pytest.raises(UserError, match=r"compare.validation: prompt unanswered has no `answer`"):
        check_problems(base)


def test_another_setting_supersedes_the_tests_of_the_former(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path)
    old, new = (Trial(resolve("dpo", METHODS), {RATE: rate}, 0, "test") for rate in (1.0, 2.0))
    for trial in (old, new):
        comparison.file(trial).parent.mkdir(parents=True, exist_ok=True)
        comparison.file(trial).write_text(json.dumps({"settings": dict(trial.settings)}))
    comparison.set_aside_other_tests([new])
    assert comparison.file(new).exists() and not comparison.file(old).exists()
    assert (tmp_path / "superseded" / "dpo" / f"{old.name}.json").exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    first, second = Comparison(tmp_path), Comparison(tmp_path)
    with held(first.path), pytest.raises(UserError, match="another allo process"), held(second.path):
        pass


def test_an_edited_file_is_another_trial(tmp_path: Path) -> None:
    """The recipe is the same, but the file of its loss has changed."""
    file = tmp_path / "mine.py"
    file.write_text("def mine(pairs, *, beta):\n    return pairs.chosen_logratios\n")
    base = recipe_of(tmp_path, methods={"mine": {"like": "dpo", "set": {"improve.loss": f"{file}:mine"}}})
    trial = Trial(resolve("mine", METHODS | base.compare.methods), {RATE: 1.0}, 0, "tune")
    comparison, recipe = Comparison(tmp_path / "c"), trial.recipe(base)
    result = record(trial) | {"recipe": recipe.model_dump(mode="json", exclude={"out", "compare"})}
    comparison.file(trial).parent.mkdir(parents=True)
    comparison.file(trial).write_text(json.dumps(result | {"files": comparison.files(recipe)}))
    assert comparison.result(trial, recipe) is not None
    file.write_text("def mine(pairs, *, beta):\n    return -pairs.chosen_logratios\n")
    assert comparison.result(trial, recipe) is None


def test_methods_are_like_others(tmp_path: Path) -> None:
    known = {
        "a": Method(set={"x": 1, "y": 2}, scale=2.0, settings=[{"z": 1}]),
        "b": Method(like="a", set={"y": 3}),
    }
    b = resolve("b", known)
    assert (b.changes, b.scale, b.settings) == ({"x": 1, "y": 3}, 2.0, ({"z": 1},))
    own = resolve("dpo", METHODS | {"dpo": Method(like="dpo", scale=7.0)})
    assert (own.changes, own.scale) == (METHODS["dpo"].set, 7.0)


@pytest.mark.parametrize(
    ("methods", "named", "found"),
    [
        ({}, ["dqo"], "unknown method 'dqo'"),
        ({"a": {"like": "b"}, "b": {"like": "a"}}, ["a"], "a is like b is like a"),
        ({"a": {"like": "a"}}, ["a"], "a is like a"),
        ({"a": {"set": {"improve.densty": 0.1}}}, ["a"], "improve.densty"),
        ({"a": {"tuned_as": "b"}, "b": {"tuned_as": "dpo"}}, ["a"], "'b' is not tuned by itself"),
    ],
)
def test_a_bad_method_is_named(tmp_path: Path, methods: dict[str, Any], named: list[str], found: str) -> None:
    with pytest.raises(UserError, match=found):
        compare(recipe_of(tmp_path, methods=methods), methods=named)


def test_seeds_may_not_be_tuned_on() -> None:
    with pytest.raises(ValueError, match=r"share \[1\]"):
        block_of(tuning_seeds=[1])


# Tuning alone, on made-up accuracies.
def found(accuracies: dict[float, float], bonus: float = 0.01) -> Any:
    """Return made-up results by rate, interpolated; each setting of a method's own adds `bonus`."""

    def result(trial: Trial) -> dict[str, Any]:
        share = accuracies.get(trial.settings[RATE], 0.0) + bonus * (len(trial.settings) - 1)
        sets = {"validation": {"prompts": list(range(100)), "greedy": [share] * 100, "sampled": None}}
        return {"sets": sets}

    return result


def waves(method: Method, block: Compare, results: Any) -> list[list[dict[str, Any]]]:
    """Return the trials wave by wave, as `compare` runs them."""
    resolved = resolve("a", {"a": method})
    done: set[str] = set()
    tried: list[list[dict[str, Any]]] = []

    def there(trial: Trial) -> Any:
        return results(trial) if trial.name in done else None

    while trials := next_trials(resolved, block, there):
        tried.append([dict(trial.settings) for trial in trials])
        done.update(trial.name for trial in trials)
    return tried


@pytest.mark.parametrize(
    ("accuracies", "further"),
    [
        ({1.0: 0.1, 4.0: 0.5, 16.0: 0.2}, {8.0, 2.0}),
        ({1.0: 0.1, 4.0: 0.2, 16.0: 0.5}, {64.0, 8.0}),
        ({1.0: 0.5, 4.0: 0.2, 16.0: 0.1}, {0.25, 2.0}),
    ],
)
def test_a_method_without_settings_tries_further_rates(
    accuracies: dict[float, float], further: set[float]
) -> None:
    tried = waves(Method(), block_of(rates=list(accuracies), extra_trials=2), found(accuracies))
    assert {settings[RATE] for settings in tried[1]} == further


@pytest.mark.invariant(
    "Every method has the same number of trials, none of them on problems that are tested on."
)
def test_both_waves_are_the_budget_whatever_the_settings() -> None:
    accuracies = {1.0: 0.1, 2.0: 0.5, 4.0: 0.2}
    block = block_of(rates=list(accuracies), extra_trials=3)
    for number in range(5):
        method = Method(settings=[{"improve.keep": 0.1 * i} for i in range(number)])
        tried = waves(method, block, found(accuracies))
        assert [len(wave) for wave in tried] == [3, 3]
        assert len({json.dumps(settings) for wave in tried for settings in wave}) == 6


def test_a_best_rate_at_the_edge_is_followed_until_it_lies_inside() -> None:
    accuracies = {1.0: 0.1, 2.0: 0.2, 4.0: 0.3, 8.0: 0.5, 16.0: 0.4}
    block = block_of(rates=[1.0, 2.0, 4.0], extra_trials=1, beyond=3)
    method = Method(settings=[{"improve.keep": 0.3}])
    tried = waves(method, block, found(accuracies))
    assert [wave[0][RATE] for wave in tried[2:]] == [8.0, 16.0]
    assert all(wave[0]["improve.keep"] == 0.3 for wave in tried[2:])
    best = tuned(resolve("a", {"a": method}), block, found(accuracies))
    assert best == {RATE: 8.0, "improve.keep": 0.3}


@pytest.mark.parametrize("beyond", [0, 1, 3])
def test_an_edge_is_followed_so_far_and_no_further(beyond: int) -> None:
    rising = {float(2**i): 0.01 * i for i in range(20)}
    tried = waves(Method(), block_of(rates=[1.0, 2.0], extra_trials=0, beyond=beyond), found(rising))
    assert len(tried) == 1 + beyond


def test_the_best_of_both_waves_is_tuned() -> None:
    accuracies = {1.0: 0.1, 2.0: 0.5, 4.0: 0.2}
    method = resolve("a", {"a": Method(settings=[{"improve.keep": 0.3}])})
    block = block_of(rates=list(accuracies), extra_trials=1)
    assert tuned(method, block, found(accuracies)) == {RATE: 2.0, "improve.keep": 0.3}


def test_a_single_rate_is_not_tuned() -> None:
    method, block = resolve("a", {"a": Method()}), block_of(rates=[2.0], extra_trials=0)
    assert not next_trials(method, block, found({}))
    assert tuned(method, block, found({})) == {RATE: 2.0}


def test_sampled_accuracy_decides_where_there_is_one() -> None:
    sets = {"prompts": ["a", "b"], "greedy": [0, 0], "sampled": {"correct": [1, 2], "of": 2}}
    assert accuracy({"sets": {"validation": sets}}) == 0.75


def test_the_reference_comes_first_and_what_a_method_is_tuned_as_comes_too() -> None:
    block = block_of(methods={"mine": {"like": "allo", "tuned_as": "ipo"}})
    assert [method.name for method in chosen(block, ["mine", "dpo", "allo"])] == [
        "allo",
        "mine",
        "dpo",
        "ipo",
    ]
