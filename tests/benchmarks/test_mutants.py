"""Mutants are known by what they change; figures are shares of those that are run and do something else."""

import pytest

from benchmarks.mutants.mutant import described, keyed
from benchmarks.mutants.record import equivalents, row
from benchmarks.record import ROOT

NAME = "allo.stages.part.xǁPartǁread__mutmut_3"
OWN = """def function(self, key):
    if key not in self.parts:
        raise UserError(f"{key}: no " "such part")
    return self.parts[key]["kind"]
"""


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ('"such part"', '"XXsuch partXX"', "message text"),
        ('"such part"', '"SUCH PART"', "message text"),
        ('"kind"', '"KIND"', "not drawn"),
        ("not in", "in", "not drawn"),
        ('UserError(f"{key}: no " "such part")', "UserError(None)", "not drawn"),
    ],
)
def test_wording_is_told_from_keys(old: str, new: str, status: str) -> None:
    found = described(NAME, OWN, OWN.replace(old, new))
    assert found["status"] == status and found["function"] == "Part.read"
    assert old in found["was"] and new in found["became"] and "\n" not in found["was"]


def test_two_changes_of_equal_lines_have_keys_of_their_own() -> None:
    one = {"function": "f", "was": "x = 1", "became": "x = 2"}
    assert [key[3] for key, _ in keyed([one, one | {"became": "x = 0"}, one])] == [1, 1, 2]


def test_shares_are_of_those_that_were_run_and_are_not_equivalent() -> None:
    statuses = {"killed": 7, "timeout": 1, "survived": 3, "no tests": 1, "message text": 5, "not drawn": 9}
    mutants = [{"status": status} for status, num in statuses.items() for _ in range(num)]
    found = row("after", "src/allo/a.py", mutants, equivalent=2)
    assert found == {
        "tests": "after",
        "file": "a.py",
        "mutants": 26,
        "message text": 5,
        "run": 12,
        "killed": 7,
        "timed out": 1,
        "no test": 1,
        "equivalent": 2,
        "killed of the others": 0.7,
    }


def test_every_listed_equivalent_has_a_kind_that_is_explained() -> None:
    known = equivalents()
    for file, was, became in known:
        lines = {line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()}
        assert was != became
        assert all(line in lines or line.startswith("def function(") for line in was.splitlines()), was
