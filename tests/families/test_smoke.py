"""The families that continuous integration tries, through every check of `make families`; together under three minutes."""

import pytest

from benchmarks.families.families import FAMILIES, Family
from benchmarks.families.run import outcomes_of

SMOKE = [family for family in FAMILIES if family.smoke]


@pytest.mark.parametrize("family", SMOKE, ids=[family.slug for family in SMOKE])
def test_every_check_of_a_family_holds(family: Family) -> None:
    assert {name: each for name, each in outcomes_of(family).items() if not each.holds} == {}
