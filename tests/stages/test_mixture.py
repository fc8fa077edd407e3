"""Mixtures: the prompts of several sources, taken in turn by weight."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.records import Prompt
from allo.recipe.sources import Part
from allo.stages.check import check
from allo.tasks.sources import in_turn, training_prompts
from tiny_run import tiny


def part(name: str, count: int, weight: float | None = None) -> tuple[Part, list[Prompt]]:
    source = Part(file=Path(f"{name}.jsonl"), weight=weight)
    return source, [Prompt(f"{name}{number}", "?", answer="1") for number in range(count)]


def names(prompts: list[Prompt]) -> str:
    return "".join(prompt.id[0] for prompt in prompts)


def test_without_weights_every_prompt_comes_once_and_all_parts_end_together() -> None:
    parts = [part("a", 60), part("b", 30), part("c", 10)]
    mixed = in_turn(parts)
    assert sorted(prompt.id for prompt in mixed) == sorted(p.id for _, prompts in parts for p in prompts)
    for end in range(1, 101):
        for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
            assert abs(names(mixed[:end]).count(name) - share * end) < 1  # as near as whole numbers come


@pytest.mark.invariant("Every beginning of a mixture holds its parts in proportion to weight.")
def test_weights_hold_for_every_beginning_until_a_part_runs_out() -> None:
    mixed = names(in_turn([part("a", 20, 1.0), part("b", 20, 3.0)]))
    for end in range(1, 26):
        assert abs(mixed[:end].count("b") - 0.75 * end) < 1
    assert mixed.count("a") == mixed.count("b") == 20  # the others go on


def test_a_part_keeps_its_own_order() -> None:
    mixed = in_turn([part("a", 20, 2.5), part("b", 30, 1.0)])
    assert [prompt.id for prompt in mixed if prompt.id[0] == "a"] == [f"a{number}" for number in range(20)]


def test_two_parts_with_one_prompt_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.mixture\.1: the id 'a0' is that of data\.mixture\.0 too"):
        in_turn([part("a", 1), part("a", 1)])


def written(folder: Path, name: str, count: int) -> Path:
    path = folder / f"{name}.jsonl"
    rows = [{"id": f"{name}{n}", "prompt": f"{name} {n}?", "answer": "1"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixture(folder: Path, **more: Any) -> str:
    parts = [{"file": str(written(folder, "a", 8))}, {"file": str(written(folder, "b", 24)), "skip": 4}]
    return "data=" + json.dumps({"mixture": parts, **more})


def test_skip_and_limit_count_prompts_of_the_mixture(tmp_path: Path) -> None:
    whole = training_prompts(tiny(tmp_path, mixture(tmp_path)))
    assert len(whole) == 28 and "b3" not in {prompt.id for prompt in whole}
    assert training_prompts(tiny(tmp_path, mixture(tmp_path, skip=5, limit=9))) == whole[5:14]


def test_a_part_without_answers_is_found_before_the_first_stage(tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"id": "bare", "prompt": "Say something."}\n')
    parts = [{"file": str(written(tmp_path, "a", 8))}, {"file": str(bare)}]
    with pytest.raises(UserError, match="prompt bare: no `answer` to judge by"):
        check(tiny(tmp_path, "data=" + json.dumps({"mixture": parts})))
