"""A comparison's summary: it finds exactly the true differences, and refuses broken or unequal trials by name."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synthetic_comparison as synthetic
from allo.compare.results import SetResult, TrialResult, read_results
from allo.compare.summary import SEED, summarise, write_summary
from allo.compare.tables import claims
from allo.errors import UserError
from allo.stats import statistics
from allo.stats.metrics import pass_at_k
from allo.stats.rate_curves import WITHIN

CLOSE = 1e-12
CERTAIN = 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison")
    synthetic.write(path)
    return path


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return write_summary(folder)


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of two seeds that a test may damage."""
    monkeypatch.setattr(statistics, "FLIPS", 99)
    synthetic.write(tmp_path, seeds=(0, 1))
    return tmp_path


def one(folder: Path, pattern: str) -> Path:
    return next(folder.glob(f"trials/{pattern}.json"))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_methods_figure_is_the_mean_over_its_seeds_and_problems(
    folder: Path, summary: dict[str, Any]
) -> None:
    trials = [t for t in read_results(folder) if t.method == "dpo" and t.purpose == "test"]
    own = summary["methods"]["dpo"]["sets"]["reworded"]
    counts = [t.sets["reworded"].sampled for t in trials]
    assert own["sampled"]["value"] == pytest.approx(
        np.mean([c.correct for c in counts if c]) / synthetic.SAMPLES, abs=CLOSE
    )
    chances = [pass_at_k(c.correct, num_samples=c.of, k=4) for c in counts if c]
    assert own["pass@4"]["value"] == pytest.approx(np.mean(chances), abs=CLOSE)
    assert own["tokens"]["value"] == 22 and own["tokens"]["low"] < 22 < own["tokens"]["high"]
    assert summary["methods"]["dpo"]["seeds"] == list(synthetic.SEEDS)


def test_intervals_hold_the_truth_that_the_answers_were_drawn_from(summary: dict[str, Any]) -> None:
    for name, method in synthetic.METHODS.items():
        for found in summary["methods"][name]["sets"].values():
            assert found["sampled"]["low"] <= method.accuracy <= found["sampled"]["high"]


def test_a_difference_that_is_there_is_found_and_one_that_is_not_is_not(summary: dict[str, Any]) -> None:
    for name in synthetic.SETS:
        worse, same = (summary["methods"][m]["against"]["sets"][name]["sampled"] for m in ("dpo", "simpo"))
        assert worse["difference"]["high"] < 0, "a method less the reference"
        assert worse["p_holm"] < CERTAIN
        assert worse["p_seeds"] == 0.0625, "five seeds have no smaller one"
        assert same["difference"]["low"] < 0 < same["difference"]["high"]
        assert same["p_holm"] > CERTAIN
    assert summary["methods"]["allo"]["against"] is None


def test_holms_family_is_every_method_on_every_set(summary: dict[str, Any]) -> None:
    family = [
        found["sampled"]
        for entry in summary["methods"].values()
        if entry["against"]
        for found in entry["against"]["sets"].values()
    ]
    assert len(family) == 6, "the start, DPO and SimPO, on two sets"
    smallest = min(family, key=lambda entry: entry["p"])
    assert smallest["p_holm"] == pytest.approx(6 * smallest["p"], rel=1e-9)


def test_differences_are_paired_over_the_seeds_that_both_have(few: Path) -> None:
    one(few, "dpo/test-*-seed-1").unlink()
    found = summarise(few)
    assert found["methods"]["dpo"]["seeds"] == [0] and found["methods"]["simpo"]["against"]["seeds"] == 2
    against = found["methods"]["dpo"]["against"]
    assert against["seeds"] == 1 and against["kl"] is None
    assert against["sets"]["test"]["sampled"]["p_seeds"] is None
    alone = [t for t in read_results(few) if t.purpose == "test" and t.seed == 0]
    correct = {t.method: np.array(t.sets["test"].rows()["sampled"]) for t in alone}
    expected = statistics.crossed_bootstrap((correct["dpo"] - correct["allo"])[None, :], seed=SEED)
    assert against["sets"]["test"]["sampled"]["difference"] == pytest.approx(
        {"value": expected.value, "low": expected.low, "high": expected.high}, abs=CLOSE
    )


def test_a_start_that_was_evaluated_once_stands_beside_every_seed(few: Path) -> None:
    one(few, "start/test-*-seed-1").unlink()
    assert summarise(few)["methods"]["start"]["against"]["seeds"] == 2


@pytest.mark.invariant("Tuning trials enter no result; uncommitted ones make no record.")
def test_tuning_trials_enter_no_result(few: Path) -> None:
    before = summarise(few)
    for path in few.glob("trials/*/tune-*.json"):
        path.unlink()
    after = summarise(few)
    assert after["methods"] == before["methods"] and after["tuning"] == {}
    assert before["tuning"]


def test_tuning_shows_each_rate_and_the_one_that_was_tested(summary: dict[str, Any]) -> None:
    tuned = summary["tuning"]["dpo"]
    assert [tried["rate"] for tried in tuned["tried"]] == list(synthetic.RATES)
    assert tuned["taken"] == summary["methods"]["dpo"]["settings"] == {"rate": 1.0}
    assert tuned["over_rates"]["robustness"]["ratio"] == 1
    curve = summary["tuning"]["allo"]["over_rates"]
    wide, best_share = curve["robustness"], max(at["accuracy"]["value"] for at in curve["rates"])
    for at in curve["rates"]:
        if wide["lowest"] <= at["rate"] <= wide["highest"]:
            assert at["accuracy"]["value"] >= best_share - WITHIN
        elif at["rate"] in (wide["lowest"] / 2, wide["highest"] * 2):
            assert at["accuracy"]["value"] < best_share - WITHIN
    assert wide["ratio"] > 1


def test_kl_at_equal_accuracy_is_between_the_rates_that_were_drawn(summary: dict[str, Any]) -> None:
    """DPO's best is about 0.56 at a KL of 0.06; ALLO reaches that below its first rate's KL of 0.01."""
    equal = summary["tuning"]["dpo"]["over_rates"]["equal_accuracy"]
    assert equal["kl"] == pytest.approx(0.06, abs=1e-9) and 0 < equal["reference_kl"] < 0.01
    assert 1 < equal["low"] < equal["ratio"] < equal["high"]
    assert summary["tuning"]["allo"]["over_rates"]["equal_accuracy"] is None


def test_without_the_starts_answers_there_is_no_kl_at_equal_accuracy(few: Path) -> None:
    one(few, "start/tune-*").unlink()
    found = summarise(few)["tuning"]["dpo"]["over_rates"]
    assert found["equal_accuracy"] is None and found["robustness"] is not None


def test_a_curve_is_over_the_settings_with_most_rates(few: Path) -> None:
    content = json.loads(one(few, "dpo/tune-rate-0.5-*").read_text())
    content["settings"] = {"rate": 0.5, "improve.beta": 0.3}
    content["sets"]["validation"]["sampled"]["correct"] = [synthetic.SAMPLES] * synthetic.PROMPTS
    (few / "trials/dpo/tune-other.json").write_text(json.dumps(content))
    tuned = summarise(few)["tuning"]["dpo"]
    assert len(tuned["tried"]) == len(synthetic.RATES) + 1
    assert tuned["over_rates"]["settings"] == {} and len(tuned["over_rates"]["rates"]) == len(synthetic.RATES)


def test_the_summary_is_json_and_the_same_again(folder: Path, summary: dict[str, Any]) -> None:
    text = (folder / "comparison.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(summary, allow_nan=False))
    write_summary(folder)
    assert (folder / "comparison.json").read_text() == text


def test_the_tables_say_each_figure_and_no_models_text(folder: Path, summary: dict[str, Any]) -> None:
    text = (folder / "comparison.md").read_text().replace("\u00a0", " ")
    value = summary["methods"]["dpo"]["sets"]["test"]["sampled"]["value"]
    row = next(line for line in text.splitlines() if line.startswith("| dpo"))
    assert f"{100 * value:.1f}%" in row
    heads = [line for line in text.splitlines() if line.startswith("### ")]
    assert heads == [
        *("### test", "### reworded", "### What it changed and took"),
        *("### Tuning of allo", "### Tuning of dpo"),
    ]
    for head in heads:
        rows = [
            line for line in text.split(head + "\n")[1].split("###")[0].splitlines() if line.startswith("|")
        ]
        assert len({line.count("|") for line in rows}) == 1, "every row has every column"


def test_claims_call_only_certain_differences_certain(summary: dict[str, Any]) -> None:
    said = list(claims(summary))
    assert any(
        re.match(r"On test, the best other method, simpo, is not shown to differ from allo", s) for s in said
    )
    without = json.loads(json.dumps(summary))
    without["best_other"] = {"test": "dpo"}
    assert next(iter(claims(without))).startswith(
        "On test, the best other method, dpo, is below allo in sampled"
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": None}, "seed"),
        ({"schema": 2}, "schema"),
        (
            {"sets": {"test": {"prompts": ["a"], "greedy": [0, 1], "sampled": None, "mean_tokens": 1}}},
            "2 entries for 1",
        ),
        (
            {"sets": {"test": {"prompts": ["a"], "greedy": None, "sampled": None, "mean_tokens": 1}}},
            "neither",
        ),
        (
            {"sets": {"test": {"prompts": ["a", "a"], "greedy": [0, 1], "sampled": None, "mean_tokens": 1}}},
            "twice",
        ),
        (
            {
                "sets": {
                    "test": {
                        "prompts": ["a"],
                        "greedy": [0],
                        "sampled": {"correct": [9], "of": 8},
                        "mean_tokens": 1,
                    }
                }
            },
            "outside 0 to 8",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_trial_is_named(few: Path, changes: dict[str, Any], complaint: str) -> None:
    path = one(few, "dpo/test-*-seed-0")
    change(path, **changes)
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        summarise(few)
    assert complaint in str(error.value)


def test_half_a_file_is_named(few: Path) -> None:
    path = one(few, "dpo/test-*-seed-0")
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=re.escape(str(path))):
        summarise(few)


def test_other_prompts_or_samples_are_refused(few: Path) -> None:
    path = one(few, "dpo/test-*-seed-0")
    content = json.loads(path.read_text())
    content["sets"]["test"]["prompts"][0] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*'test' has other prompts"):
        summarise(few)


def test_one_trial_twice_and_two_settings_are_refused(few: Path) -> None:
    path = one(few, "dpo/test-*-seed-0")
    twice = path.with_name("test-again.json")
    twice.write_text(path.read_text())
    with pytest.raises(UserError, match=r"same method, settings, seed and purpose"):
        summarise(few)
    change(twice, settings={"rate": 3.0}, seed=9)
    with pytest.raises(UserError, match=r"compared with one setting"):
        summarise(few)


def test_no_folder_no_reference_no_summary(few: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trial"):
        summarise(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"reference method 'other'.*dpo, simpo"):
        summarise(few, reference="other")


def test_the_provenance_of_trials_is_listed(few: Path) -> None:
    change(one(few, "dpo/test-*-seed-0"), dirty=True, commit="f" * 40)
    made = summarise(few)["made_with"]
    assert made["commits"] == [synthetic.COMMIT, "f" * 40] and len(made["dirty"]) == 1


def test_greedy_answers_alone_are_compared(few: Path) -> None:
    for path in few.glob("trials/*/*.json"):
        content = json.loads(path.read_text())
        for result in content["sets"].values():
            result["sampled"] = None
        path.write_text(json.dumps(content))
    found = write_summary(few)
    assert list(found["methods"]["dpo"]["against"]["sets"]["test"]) == ["greedy"]
    assert found["best_other"]["test"] == "simpo"


def test_passes_are_of_powers_of_two_up_to_the_samples() -> None:
    result = SetResult.model_validate(
        {"prompts": ["a", "b"], "greedy": None, "sampled": {"correct": [0, 6], "of": 6}, "mean_tokens": None}
    )
    assert list(result.rows()) == ["sampled", "pass@2", "pass@4"]
    assert result.right().tolist() == [0, 1]


def test_a_recipes_value_is_read_by_its_dotted_key(few: Path) -> None:
    trial: TrialResult = next(t for t in read_results(few) if t.method == "allo")
    assert trial.recipe_value("improve.density") == 0.1
    with pytest.raises(UserError, match=r"no key 'improve\.keep'"):
        trial.recipe_value("improve.keep")
