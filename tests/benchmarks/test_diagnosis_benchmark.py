"""The planted faults on the laboratory's model: each diagnosis has one, and each is named."""

from pathlib import Path

import pytest

from allo.report.diagnosis import DIAGNOSES
from benchmarks.runs.diagnosis import FAULTS, garbled, measure, row, shortened

PAIR = {"prompt": "P one two", "chosen": "First 1 + 2 = 3. The answer is 3.", "rejected": "No."}


def test_every_diagnosis_is_planted_once() -> None:
    assert sorted(fault.fault for fault in FAULTS) == sorted(each.name for each in DIAGNOSES)


def test_a_miss_is_a_run_that_does_not_name_its_fault_and_every_word_on_a_good_run_is_an_alarm() -> None:
    missed = row("loss rose", [["far from the start"], ["loss rose", "loss jumped"], []])
    assert (missed["runs"], missed["missed"], missed["false alarms"]) == (3, 2, None)
    assert missed["also named"] == "far from the start, loss jumped"
    good = row("", [[], ["loss rose", "loss jumped"], []])
    assert (good["missed"], good["false alarms"]) == (None, 1)


def test_planted_pairs_are_as_they_say() -> None:
    assert shortened([PAIR])[0] == PAIR | {"chosen": "First 1 + 2 = 3.", "rejected": PAIR["chosen"]}
    changed = garbled([PAIR, PAIR])
    assert changed[1] == PAIR and changed[0]["chosen"].split()[0] == "3." != PAIR["chosen"].split()[0]


@pytest.mark.slow
def test_planted_faults_are_named_and_good_runs_are_not(tmp_path: Path) -> None:
    rows = measure(FAULTS, good=3, work=tmp_path)
    assert [each["planted"] for each in rows if each["missed"]] == []
    assert rows[-1]["false alarms"] == 0, rows[-1]
