"""A comparison needs test problems of its own: held-out rows would differ from seed to seed."""

from pathlib import Path

import pytest

from allo.compare.problems import check_problems
from allo.errors import UserError
from allo.recipe import load_recipe


def test_a_comparison_without_evaluation_sets_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    compare = (
        "compare: {methods: {own: {}}, reference: own, rates: [1.0], seeds: [0], validation: {file: v.jsonl}}"
    )
    file.write_text(f"name: a\nmodel: m\ndata: {{file: p.jsonl}}\n{compare}\n")
    with pytest.raises(UserError, match=r"^evaluate.sets: a comparison is of accuracies on test problems"):
        check_problems(load_recipe(file))
