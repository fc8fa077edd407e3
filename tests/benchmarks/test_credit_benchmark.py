"""The benchmark of token scorers: its figures against plain counting, its tables, and its flaws that a model is sure of."""

import json
from pathlib import Path

import numpy as np
import pytest

from allo.files.records import Prompt, Wrong
from allo.tasks.planted_flaws import demonstrations, label_tokens
from benchmarks.credit import confident, judging, scorers

NUM_COMPLETIONS, LENGTH = 30, 12
SHARE_SPREAD = 0.02  # three standard errors of .95 over 1,200 demonstrations


@pytest.fixture
def words() -> judging.Words:
    """Words with ties, of which a wrong one scores somewhat lower."""
    rng = np.random.default_rng(0)
    wrong = rng.random(NUM_COMPLETIONS * LENGTH) < 0.2
    scores = (rng.integers(0, 10, len(wrong)) - 3 * wrong).astype(float)
    return judging.Words(scores, wrong, np.repeat(np.arange(NUM_COMPLETIONS), LENGTH))


def test_the_area_counts_pairs_of_a_wrong_and_a_right_word_as_often_as_drawn(words) -> None:
    weights = np.random.default_rng(1).integers(0, 4, NUM_COMPLETIONS).astype(float)
    score, total = 0.0, 0.0
    for wrong, w in zip(words.scores[words.wrong], weights[words.owner[words.wrong]], strict=True):
        for right, r in zip(words.scores[~words.wrong], weights[words.owner[~words.wrong]], strict=True):
            score += w * r * ((wrong < right) + (wrong == right) / 2)
            total += w * r
    assert judging.auc(words)(weights) == pytest.approx(score / total)


def test_precision_and_recall_count_marked_words(words) -> None:
    ones, threshold = np.ones(NUM_COMPLETIONS), 2.5
    marked = words.scores < threshold
    hits = (marked & words.wrong).sum()
    assert judging.precision(words, threshold=threshold)(ones) == pytest.approx(hits / marked.sum())
    assert judging.recall(words, threshold=threshold)(ones) == pytest.approx(hits / words.wrong.sum())


def test_no_threshold_has_a_higher_f1(words) -> None:
    def f1(threshold: float) -> float:
        marked = words.scores < threshold
        return float(2 * (marked & words.wrong).sum() / (marked.sum() + words.wrong.sum()))

    best = judging.best_threshold(words)
    assert f1(best) == max(f1(threshold) for threshold in np.arange(-4, 11, 0.5))


def test_an_interval_is_over_completions_not_words(words) -> None:
    once = judging.with_interval(judging.auc(words), words, seed=0)
    assert once["low"] < once["value"] < once["high"]
    # The same words four times over within their completions tell nothing more.
    more = judging.Words(*(np.tile(part, 4) for part in (words.scores, words.wrong, words.owner)))
    assert judging.with_interval(judging.auc(more), more, seed=0) == pytest.approx(once)
    # As completions of their own they would.
    owner = np.concatenate([words.owner + NUM_COMPLETIONS * copy for copy in range(4)])
    apart = judging.Words(more.scores, more.wrong, owner)
    narrow = judging.with_interval(judging.auc(apart), apart, seed=0)
    assert narrow["high"] - narrow["low"] < 0.7 * (once["high"] - once["low"])


def test_a_confident_flaw_turns_one_operation_and_works_on_from_there() -> None:
    solution = "First 9 + 2 = 11. Then 11 - 7 = 4. Then 4 * 3 = 12. The answer is 12."
    turned = confident.flawed(solution)
    assert turned == "First 9 + 2 = 11. Then 11 + 7 = 18. Then 18 * 3 = 54. The answer is 54."
    labels = label_tokens(Prompt("x", "", solution=solution), turned)
    assert labels is not None and labels.index(True) == 9  # the turned operator
    assert confident.flawed("First 9 + 2 = 11. The answer is 11.") is None
    assert confident.flawed("First 2 - 2 = 0. Then 0 + 7 = 7. The answer is 7.") is None  # below 0


def test_a_scorer_is_judged_by_level_on_causes_and_on_all_its_marks_together() -> None:
    """It finds the causes of level 1, not those of level 2, and no word that follows from a cause."""
    labels = [[False, True, False, True]] * 40
    rows = [
        scorers.Scored(Wrong(f"x/{i}-0", f"x/y/{1 + i % 2}/{i}", "", "", True, None, []), None)
        for i in range(40)
    ]
    scores = [[0.5, 0.2 if i % 2 == 0 else 0.7, 0.5, 0.9] for i in range(40)]
    case = scorers.Case(None, None, rows, labels)
    found = scorers.judge(case, scores, levels=(1, 2, 3))
    assert found["1"]["value"] == 1 and found["2"]["value"] == 0 and found["3"] is None
    assert found["AUC, all wrong words"]["value"] == pytest.approx(1 / 4)
    assert found["threshold"] == pytest.approx(0.35)
    held_out = np.array([scorers.random_scores(row.wrong.prompt_id, 1, seed=0)[0] >= 0.5 for row in rows])
    assert found["precision"]["value"] == 1  # all that it marks are causes
    assert found["recall"]["value"] == pytest.approx(np.mean(np.arange(40)[held_out] % 2 == 0))


def test_each_figure_stands_under_its_family_and_level() -> None:
    kinds = ("1", "2", "3", "4", "precision", "recall", "AUC, all wrong words", "threshold")
    cost = scorers.Cost(2.0, 3.0, 4_000_000)
    found = {
        (policy, family): {"edit": {kind: f"{policy} {family} {kind}" for kind in kinds} | {"cost": cost}}
        for policy in scorers.POLICIES
        for family in scorers.FAMILIES
        if (policy, family) != ("confident", "reworded")  # not measured yet
    }
    (causes,), (marks,) = scorers.cause_rows(found), scorers.mark_rows(found)
    assert causes["told 3"] == "shipped told 3" and causes["reworded 1"] == "shipped reworded 1"
    assert causes["told 4"] == "confident told 4" and causes["reworded 4"] is None
    assert (causes["sees solutions"], causes["MB"]) == ("yes", 4.0)
    assert marks["reworded: recall"] == "shipped reworded recall"


@pytest.mark.parametrize("family", ["told", "reworded"])
def test_problems_of_level_four_have_their_right_solution_and_no_trap(family: str, tmp_path: Path) -> None:
    files = confident.write_files(family, tmp_path)
    shown, asked = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    four = [row for row in asked if f"/{confident.LEVEL}/" in row["id"]]
    assert len(four) == confident.NUM_PROBLEMS and len(asked) == len(four) + confident.NUM_OTHERS
    assert all(confident.flawed(row["solution"]) for row in four)
    assert all(row["solution"].endswith(f"The answer is {row['answer']}.") for row in asked)
    size = 1 + max(int(row["id"].rsplit("/", 1)[1]) for row in shown)
    right = {d.prompt.id: d.prompt.solution for d in demonstrations(confident.SPLITS[family][0], size=size)}
    split = confident.SPLITS[family][1]
    assert len({row["solution"] for row in asked}) > len(asked) - confident.NUM_OTHERS, "level 4 has no twins"
    traps = {d.prompt.prompt for d in demonstrations(split, level=3)}
    assert not traps & {row["prompt"] for row in four}
    # No problem that is asked was shown, in whatever words. A text with a flaw may be another problem's solution.
    assert not {row["solution"] for row in asked} & {right[row["id"]] for row in shown}
    turned = [row["solution"] == confident.flawed(right[row["id"]]) for row in shown[::2]]
    assert np.mean(turned) == pytest.approx(confident.FLAWED_SHARE, abs=SHARE_SPREAD)
