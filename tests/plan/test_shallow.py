"""A deep model's plan by two shallow ones is the plan of the model itself."""

import json
from pathlib import Path

import pytest

from allo.plan import plan_stage, rehearse_stage, shallow
from allo.plan.size import folder_of, parse_weights, shape_of
from allo.recipe import load_recipe
from tiny_run import LAB

RELATIVE = 0.01
"""Of all bytes. Kernels' results that live at the peak of a shallow model may be others at that of a deep one."""


@pytest.mark.parametrize("stage", ["locate", "score", "improve", "evaluate"])
def test_layers_that_are_alike_take_the_same_memory(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(*arguments: object) -> object:
        asked.append(arguments)
        return original(*arguments)

    original = shallow._shallow
    monkeypatch.setattr(shallow, "_shallow", counted)
    with folder_of(shape_of(parse_weights("100M"))) as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": shallow.DEEP}))
        recipe = load_recipe(
            LAB.parent / "recipe" / "start" / "pairs.yaml", [f"model={folder}", "data.pairs=x.jsonl"]
        )
        by_layer, whole = plan_stage(recipe, stage), rehearse_stage(recipe, stage)
    assert len(asked) == 2, "planned without shallow models"
    assert by_layer.total == pytest.approx(whole.total, rel=RELATIVE)
    for kind, number in whole.bytes.items():
        assert by_layer.bytes[kind] == pytest.approx(number, abs=RELATIVE * whole.total), kind
