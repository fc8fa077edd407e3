"""`locate.include` and `locate.exclude` as keys: of a file, of a comparison, of rounds, in the schema."""

from pathlib import Path

import pytest

from allo.compare.methods import METHODS, Method, resolve
from allo.compare.trials import Trial
from allo.errors import UserError
from allo.files.rounds import of_round
from allo.recipe import Recipe, load_recipe, save_recipe, schema
from allo.recipe.locate import KINDS
from tiny_run import RECIPE, tiny

LISTS = ("locate.include=[linear, '*norm*']", "locate.exclude=[lm_head.weight]")


def test_lists_are_read_saved_and_read_again(tmp_path: Path) -> None:
    own = tiny(tmp_path, *LISTS)
    assert own.locate is not None
    assert (own.locate.include, own.locate.exclude) == (["linear", "*norm*"], ["lm_head.weight"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(save_recipe(own))
    assert load_recipe(saved) == own
    assert "include:" not in save_recipe(tiny(tmp_path))


@pytest.mark.parametrize("bad", ["linear", "3", "[3]", "[' ']", "[[linear]]", "null", "{linear: 1}"])
def test_what_is_no_list_of_names_is_refused_by_its_key(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UserError, match=r"locate\.include"):
        tiny(tmp_path, f"locate.include={bad}")


@pytest.mark.parametrize("text", ["[*.q_proj.weight]", "[*q_proj*]", "*linear"])
def test_a_pattern_without_its_quotes_is_told_to_have_them(tmp_path: Path, text: str) -> None:
    """YAML takes it for an alias."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: tiny\nlocate:\n  include: {text}\n")
    with pytest.raises(UserError, match=r"recipe.yaml:3: .* put a text that begins with \* in quotes"):
        load_recipe(file)


def test_the_schema_offers_the_kinds() -> None:
    properties = schema()["$defs"]["Locate"]["properties"]
    for side in ("include", "exclude"):
        assert set(KINDS) <= set(properties[side]["items"]["examples"])
    assert all(f"`{kind}`" in properties["include"]["description"] for kind in KINDS)


@pytest.mark.parametrize("trainer", ["lora", "shira"])
def test_a_trainer_that_does_not_locate_refuses_them(tmp_path: Path, trainer: str) -> None:
    plain = ("forget=null", "score=null", f"improve.trainer={trainer}", "improve.keep=1.0")
    tiny(tmp_path, *plain)
    for one in LISTS:
        with pytest.raises(UserError, match=r"trains no located weights: remove locate\.include"):
            tiny(tmp_path, *plain, one)


def test_each_round_selects_in_the_same_tensors(tmp_path: Path) -> None:
    own = tiny(tmp_path, *LISTS, "rounds=3", "score.scorer=confidence")
    assert all(of_round(own, number).locate == own.locate for number in (1, 2, 3))


def trial(base: Recipe, changes: dict[str, object]) -> Recipe:
    method = resolve("own", METHODS | {"own": Method(like="allo", set=changes)})
    return Trial(method, {"rate": 1.0}, seed=3, purpose="test").recipe(base)


def test_methods_of_a_comparison_set_and_remove_them(tmp_path: Path) -> None:
    compare = "compare={validation: {task: planted_flaws, split: validation}}"
    base, bare = tiny(tmp_path, *LISTS, compare), tiny(tmp_path, compare)
    assert trial(base, {}).locate == base.locate
    assert trial(base, {"locate.include": [], "locate.exclude": []}).locate == bare.locate
    assert trial(bare, {"locate.include": ["experts"]}).locate != bare.locate
    with pytest.raises(UserError, match=r"locate\.include"):
        trial(bare, {"locate.include": "experts"})
    lora = Trial(resolve("lora_dpo", METHODS), {"rate": 1.0}, seed=3, purpose="test").recipe(base)
    assert lora.locate is None, RECIPE
