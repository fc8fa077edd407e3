"""Every recipe that ships passes `allo check`, with a local model and local rows in place of the hub's."""

import json
from pathlib import Path

import pytest

import tiny
from allo.plan.preview import preview
from allo.plan.preview_page import lines
from allo.recipe import load_recipe
from check_setup import written
from tiny_chat import TEMPLATE, chat_tokenizer, save_chat_model
from tiny_run import LAB

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("src/allo/demo/*.yaml")])
SHARED_DATA = ROOT.parent / "shared" / "data"
HUB = [
    path
    for path in SHIPPED
    if "/" in load_recipe(path).model and not load_recipe(path).model.startswith("src")
]
ON_LABORATORY = [path for path in SHIPPED if path not in HUB]


def checked(path: Path, tmp_path: Path, *overrides: str) -> list[str]:
    recipe = load_recipe(path, [f"out={tmp_path / 'runs'}", *overrides])
    page = [line.plain for line in lines(preview(recipe), width=80, plain=True)]
    assert not (tmp_path / "runs").exists(), "it wrote something"
    assert max(map(len, page)) <= 80
    return page


@pytest.mark.parametrize("path", ON_LABORATORY, ids=lambda path: path.name)
def test_a_recipe_on_the_laboratory_passes(path: Path, tmp_path: Path) -> None:
    own = [f"model={LAB}"]
    if load_recipe(path).data.pairs is not None:
        row = {"prompt": "Zoe has 3 hats.", "chosen": " 3", "rejected": " 2"}
        own.append(f"data.pairs={written(tmp_path / 'pairs.jsonl', row)}")
    assert "Examples, token by token" in " ".join(checked(path, tmp_path, *own))


@pytest.mark.parametrize(
    "path",
    # Whole benchmarks take more than ten seconds.
    [pytest.param(path, marks=pytest.mark.slow if "llama" in path.name else ()) for path in HUB],
    ids=[path.name for path in HUB],
)
def test_a_recipe_on_a_model_of_the_hub_passes_with_a_local_one(path: Path, tmp_path: Path) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is not here: this recipe reads benchmarks of the hub")
    recipe, tokenizer = load_recipe(path), chat_tokenizer()
    model = save_chat_model(tmp_path / "model", tokenizer, ends=[2], max_position_embeddings=8192)
    own = [f"model={model}", f"data_folder={SHARED_DATA}", "pad_token=null"]
    if recipe.data.hub is not None:
        rows = [{"prompt": f"{number}+2?", "answer": str(number + 2)} for number in range(8)]
        own.append(f"data={json.dumps({'file': str(written(tmp_path / 'prompts.jsonl', *rows))})}")
    for key in ("judge", "evaluate"):
        if getattr(recipe, key).reward_model is not None:
            judge = tiny.reward_model(tmp_path / key, template=TEMPLATE, max_position_embeddings=8192)
            own += [f"{key}.reward_model={judge}"]
    assert any("carry loss" in line for line in checked(path, tmp_path, *own))
