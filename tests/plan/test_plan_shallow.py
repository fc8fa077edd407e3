"""Plans of deep models from shallow ones: they equal a rehearsal of every layer."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.plan import plan_stage, rehearse_stage, shallow
from allo.plan.advice import advise
from allo.recipe import Recipe, read_recipe
from allo.recipe.starting import StartKind, start_text

LAYERS = 8
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}
# Shares of all bytes. Now and then a cycle of objects keeps a tensor until Python collects it, and kernels' results that
# live at a shallow model's peak may differ from those at a deep one's.
OF_ALL_BYTES = 0.02
OF_DEEP = 0.01


@pytest.fixture
def few_are_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let eight layers count as many, so that rehearsing them all is cheap."""
    monkeypatch.setattr(shallow, "DEEP", LAYERS)


@pytest.fixture
def asked(tmp_path: Path) -> Any:
    def make(*overrides: str, kind: StartKind = "pairs", **shape: Any) -> Recipe:
        (tmp_path / "config.json").write_text(json.dumps(SHAPE | shape))
        given = [f"model={json.dumps(str(tmp_path))}", "max_length=128", *overrides]
        return read_recipe(start_text(kind), path=Path("start.yaml"), overrides=given)

    return make


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("locate", ()),
        ("locate", ("locate.criterion=warmup",)),
        ("score", ()),
        pytest.param("forget", ("forget.training.activation_checkpointing=true",), marks=pytest.mark.slow),
        pytest.param(
            "improve", ("improve.reference=precomputed", "improve.lean=true"), marks=pytest.mark.slow
        ),
        ("improve", ("improve.density=0.01", "dtype=float32")),
        ("evaluate", ()),
    ],
)
@pytest.mark.usefixtures("few_are_deep")
def test_a_plan_by_layers_is_that_of_every_layer(
    asked: Any, stage: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_plans_agree(asked(*overrides), stage, monkeypatch, share=OF_ALL_BYTES)


@pytest.mark.parametrize("stage", ["locate", "score", "evaluate"])
def test_a_model_just_deep_enough_is_planned_by_layers(
    asked: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_plans_agree(asked(num_hidden_layers=shallow.DEEP), stage, monkeypatch, share=OF_DEEP)


def assert_plans_agree(recipe: Recipe, stage: str, monkeypatch: pytest.MonkeyPatch, *, share: float) -> None:
    made = []

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return original(*arguments)

    original = shallow._shallow
    monkeypatch.setattr(shallow, "_shallow", counted)
    whole, planned = rehearse_stage(recipe, stage), plan_stage(recipe, stage)
    assert len(made) == 2, "planned without shallow models"
    assert planned.load == whole.load
    assert planned.host == pytest.approx(whole.host, rel=1e-3)
    assert planned.bytes["weights"] == whole.bytes["weights"]
    assert planned.total == pytest.approx(whole.total, rel=share)
    for kind, number in whole.bytes.items():
        assert planned.bytes[kind] == pytest.approx(number, abs=share * whole.total), kind


@pytest.mark.parametrize(
    "shape",
    [
        {"num_hidden_layers": LAYERS - 1},
        {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "use_sliding_window": True,
            "max_window_layers": 3,
        },
        {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3ForCausalLM"],
            "head_dim": 16,
            "sliding_window": 32,
        },
    ],
)
@pytest.mark.usefixtures("few_are_deep")
def test_few_layers_and_layers_that_differ_are_all_rehearsed(
    asked: Any, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = asked(**shape)
    monkeypatch.setattr(shallow, "_shallow", None)
    assert plan_stage(recipe, "score") == rehearse_stage(recipe, "score")


def test_advice_leaves_out_a_setting_that_a_run_would_refuse(asked: Any) -> None:
    recipe = asked("improve.loss=kto", kind="feedback", num_hidden_layers=1)
    before = plan_stage(recipe, "improve")
    advised = advise(recipe, before, limit=before.total * 3 // 4)
    assert advised.plan is not None and "improve.reference" not in advised.settings
    nothing = advise(recipe, before, limit=before.bytes["weights"])
    assert nothing.plan is None and not nothing.settings
