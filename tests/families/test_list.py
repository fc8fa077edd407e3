"""Every family of the list, through every check: `pytest -m slow` on this file, under an hour; `make families` is the same."""

import pytest

from benchmarks.families.families import FAMILIES, Family
from benchmarks.families.run import outcomes_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES, ids=[family.slug for family in FAMILIES])
def test_a_family_works_whole_or_is_refused_before_the_first_stage(family: Family) -> None:
    found = outcomes_of(family)
    if found["check"].kind == "refused":
        assert ";" in found["check"].what or ":" in found["check"].what  # the reason, and what to use instead
        return
    assert {name: each for name, each in found.items() if not each.holds} == {}
