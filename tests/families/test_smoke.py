"""The families that continuous integration tries, through the short checks of `make families`; together under three minutes.

The others (the plan, a run in bf16, every criterion) take several times as long: `tests/families/test_list.py`, slow.
"""

import pytest

from benchmarks.families.families import FAMILIES, Family
from benchmarks.families.run import SHORT, outcomes_of

SMOKE = [family for family in FAMILIES if family.smoke]


@pytest.mark.parametrize("family", SMOKE, ids=[family.slug for family in SMOKE])
def test_every_short_check_of_a_family_holds(family: Family) -> None:
    assert {name: each for name, each in outcomes_of(family, only=SHORT).items() if not each.holds} == {}
