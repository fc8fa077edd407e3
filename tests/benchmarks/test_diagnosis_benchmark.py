"""The planted faults and the good runs: each diagnosis has a fault, and each fault is named."""

import gzip
import json
from pathlib import Path

import pytest

from allo.report.diagnosis import DIAGNOSES
from benchmarks.runs.diagnosis import ALL, Found, laboratory, measure, rows_of, short_pairs, small
from benchmarks.runs.planted import (
    AGAIN,
    FAULTS,
    GOOD,
    PAIRS,
    SMALL_FAULTS,
    SMALL_GOOD,
    Case,
    garbled,
    labelled,
    lengthened,
    shortened,
)

PAIR = {"prompt": "P one two", "chosen": "First 1 + 2 = 3. The answer is 3.", "rejected": "No."}
ROSE, DPO = Case("loss rose", {}), Case("dpo", {})


def test_every_diagnosis_is_planted_and_every_planted_fault_is_one() -> None:
    names = {each.name for each in DIAGNOSES}
    assert (
        sorted(fault.name for fault in FAULTS) == sorted(names) and {fault.name for fault in AGAIN} <= names
    )
    assert len({fault.name for fault in SMALL_FAULTS} & names) == 3


def test_a_miss_is_a_run_that_does_not_name_its_fault() -> None:
    named = (("far from the start",), ("loss rose", "loss jumped"), ("loss jumped", "loss rose"), ())
    (missed,) = rows_of([Found(ROSE, names, told=names[:1]) for names in named])
    assert (missed["runs"], missed["missed"], missed["false alarms"]) == (4, 2, None)
    assert missed["without a sentence"] == 1, "named after others alone"
    assert missed["also named"] == "far from the start, loss jumped"


def test_every_sentence_on_a_good_run_is_an_alarm_and_its_accuracy_is_counted() -> None:
    good = [
        Found(DPO, (), (), 0.5, 0.7),
        Found(DPO, ("loss rose", "loss jumped"), (), 0.5, 0.5),
        Found(DPO, (), ()),
    ]
    method, every = rows_of(good)
    assert (method["planted"], every["planted"]) == ("nothing: dpo", f"nothing: {ALL}")
    for row in (method, every):
        assert (row["runs"], row["missed"], row["false alarms"], row["more accurate after"]) == (
            3,
            None,
            1,
            1,
        )


def test_rows_of_one_fault_stand_together() -> None:
    found = [Found(ROSE, (), ()), Found(Case("loss jumped", {}), (), ()), Found(ROSE, ("loss rose",), ())]
    rows = rows_of(found)
    assert [(row["planted"], row["runs"], row["missed"]) for row in rows] == [
        ("loss rose", 2, 1),
        ("loss jumped", 1, 1),
    ]


def test_planted_rows_are_as_they_say() -> None:
    assert shortened([PAIR])[0] == PAIR | {"chosen": "First 1 + 2 = 3.", "rejected": PAIR["chosen"]}
    assert lengthened([PAIR])[0]["chosen"] == f"{PAIR['chosen']} {PAIR['chosen']}"
    changed = garbled([PAIR, PAIR])
    assert changed[1] == PAIR and changed[0]["chosen"].split()[0] == "3." != PAIR["chosen"].split()[0]
    good, bad = labelled([PAIR])
    assert (good["completion"], good["label"], bad["completion"], bad["label"]) == (
        PAIR["chosen"],
        True,
        "No.",
        False,
    )


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_short_pairs_are_the_first_that_fit(name: str, tmp_path: Path) -> None:
    rows = [PAIR | {"chosen": "x" * (900 if i % 2 else 9), "id": i, "prompt": f"P{i}"} for i in range(200)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    found = short_pairs(tmp_path / name)
    assert len(found) == 48 and found[-1] == {
        "prompt": "P94",
        "chosen": "x" * 9,
        "rejected": "No.",
    }


def test_every_case_has_a_recipe(tmp_path: Path) -> None:
    for bench, cases in (
        (laboratory(tmp_path, data_seed=0), FAULTS + GOOD + AGAIN),
        (small("model.gguf", [PAIR], tmp_path, seed=3), SMALL_FAULTS + SMALL_GOOD),
    ):
        for case in cases:
            rows = case.rows([PAIR]) if case.rows else None
            recipe = bench.recipe(case, tmp_path / "run", rows, seed=3)
            assert recipe.seed == 3 and recipe.data.is_ready is (rows is not None or bench.form == PAIRS)


@pytest.mark.slow
def test_planted_faults_are_named_and_good_runs_are_not(tmp_path: Path) -> None:
    rows = measure(laboratory(tmp_path, data_seed=0), FAULTS + GOOD[:3], seed=1)
    assert [each["planted"] for each in rows if each["missed"]] == []
    assert rows[-1]["false alarms"] == 0, rows
