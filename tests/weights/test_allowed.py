"""Patterns of tensors in which weights may be selected: names, kinds, and what they leave."""

import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from allo.errors import UserError
from allo.recipe.locate import KINDS
from allo.weights.allowed import Allowed, allowed_in, allowed_tensors, kinds_of, kinds_unknown

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{name}.weight"
        for layer in (0, 1, 11)
        for name in ("self_attn.q_proj", "mlp.up_proj", "norm")
    ),
    "lm_head.weight",
]
SHAPES = dict.fromkeys(NAMES, (4, 5))
N = 20 * len(NAMES)


def named(*include: str, exclude: tuple[str, ...] = (), density: float = 1 / N) -> set[str]:
    found = allowed_tensors(SHAPES, kinds_unknown, include=include, exclude=exclude, density=density)
    return set(found.names)


def refused(*include: str, exclude: tuple[str, ...] = (), density: float = 1 / N) -> str:
    with pytest.raises(UserError) as error:
        named(*include, exclude=exclude, density=density)
    return str(error.value)


def test_a_pattern_is_a_glob_of_the_whole_name_that_crosses_dots() -> None:
    assert named("model.layers.1.*") == {name for name in NAMES if name.startswith("model.layers.1.")}
    assert named("*.q_proj.weight") == {name for name in NAMES if "q_proj" in name}
    assert named("model.layers.[01].mlp.*") == {f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1)}
    assert named("model.layers.1?.norm.weight") == {"model.layers.11.norm.weight"}
    assert named("lm_head.weight") == {"lm_head.weight"}
    assert named("*") == set(NAMES)
    assert "none of the model's" in refused("LM_HEAD.weight")  # the case counts
    assert "none of the model's" in refused("model.layers.1")  # the whole name, not its beginning


def test_excluded_tensors_are_taken_from_the_included_in_any_order() -> None:
    both = named("*.q_proj.*", "lm_head.*", exclude=("model.layers.0.*",))
    assert both == named("lm_head.*", "*.q_proj.*", exclude=("model.layers.0.*",))
    assert both == {"lm_head.weight", *(f"model.layers.{n}.self_attn.q_proj.weight" for n in (1, 11))}
    assert named(exclude=("*norm*",)) == {name for name in NAMES if "norm" not in name}
    assert named("*q_proj*", exclude=("*norm*",)) == named("*q_proj*")


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("q_proj", "'*q_proj*' names 3, such as model.layers.0.self_attn.q_proj.weight"),
        ("layers.0.", "'*layers.0.*' names 3"),
        ("*.q_porj.*", "did you mean model.layers.0.self_attn.q_proj.weight"),
        ("lineer", "did you mean linear"),
        ("model.embed_token.weight", "embed_tokens"),
        ("zzzz", "give linear, experts, embeddings, vision or a pattern for whole names such as model.embed"),
        ("experts", "routed experts"),
        ("vision", "vision tower"),
    ],
)
def test_a_pattern_without_a_tensor_is_refused_with_what_is_near(pattern: str, near: str) -> None:
    for message in (refused("*norm*", pattern), refused(exclude=(pattern,))):
        assert f"{pattern!r} names none of the model's {len(NAMES)} tensors" in message and near in message
    assert refused(exclude=(pattern,)).startswith("exclude: ")


def test_near_names_of_a_large_mixture_are_found_at_once() -> None:
    """Names that differ by numbers alone count once; otherwise this takes minutes."""
    shapes = {f"m.layers.{n // 512}.mlp.experts.{n % 512}.down_proj.weight": (1,) for n in range(60_000)}
    with pytest.raises(UserError, match=r"did you mean m\.layers"):
        allowed_tensors(shapes, kinds_unknown, include=["*dwon_proj*"], exclude=(), density=0.1)


def test_fewer_weights_than_the_density_of_all_asks_for_are_refused_with_the_figures() -> None:
    three = 60  # weights of *q_proj*
    assert named("*q_proj*", density=three / N)
    message = refused("*q_proj*", density=(three + 1) / N)
    assert f"include: {three} of the model's {N} weights are left" in message
    assert f"asks for {three + 1}: " in message and "lower the density to at most " in message
    advised = float(message.rsplit(" ", 1)[-1])
    assert named("*q_proj*", density=advised) and advised == pytest.approx(three / N, abs=1e-5)


def test_patterns_that_leave_nothing_are_refused() -> None:
    message = refused("*q_proj*", exclude=("*",))
    assert message.startswith("include and exclude: 0 of the model's") and message.endswith(
        "name other tensors"
    )
    assert "name other tensors" in refused(exclude=("*",))


def test_a_tensor_that_never_trains_may_be_named_and_is_never_allowed() -> None:
    tower = {"vision_tower.layers.0.weight": (1000, 10)}
    for exclude in ((), ("vision",), ("vision_tower.*",)):
        found = allowed_tensors(SHAPES, kinds_unknown, include=(), exclude=exclude, density=1.0, others=tower)
        assert found.names == set(NAMES) and found.num_weights == N
    with pytest.raises(UserError, match=f"include: 0 of the model's {N} weights are left"):
        allowed_tensors(SHAPES, kinds_unknown, include=["vision"], exclude=(), density=0.1, others=tower)


def test_one_text_is_no_list_of_patterns() -> None:
    with pytest.raises(UserError, match="'linear' is one text; give a list"):
        allowed_tensors(SHAPES, kinds_unknown, include="linear", exclude=(), density=0.1)


def test_without_patterns_all_is_allowed_and_a_masks_header_is_as_before() -> None:
    found = allowed_in(tiny.model(), (), (), density=1.0)
    assert found.names == set(tiny.shapes(tiny.model())) and found.metadata == {}


def test_the_words_say_that_a_density_is_of_all_weights() -> None:
    found = Allowed({"a"}, {"a": (10, 10), "b": (30, 10)}, include=["a"])
    assert found.words(0.05) == (
        "100 of 400 weights may be selected, in 1 of 2 tensors; density 0.05 is a share of all weights: 20, which is "
        "0.2 of those"
    )
    assert found.metadata == {"include": "a", "num_allowed": "100"}


# Kinds


def kinds(model: nn.Module) -> dict[str, set[str]]:
    return {kind: set(names) for kind, names in kinds_of(model).items()}


def test_linear_are_the_weights_of_linear_layers_alone() -> None:
    tied, untied = tiny.model(), tiny.model(tie_word_embeddings=False)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    inner = {name for name in tiny.shapes(tied) if any(part in name for part in parts)}
    assert kinds(tied) == {"linear": inner, "embeddings": {"model.embed_tokens.weight"}}
    assert kinds(untied)["linear"] == inner | {"lm_head.weight"}
    biased = tiny.model(attention_bias=True)
    assert any(name.endswith("q_proj.bias") for name in tiny.shapes(biased))
    assert kinds(biased)["linear"] == inner


def test_a_weight_that_two_layers_share_is_not_linear() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    assert kinds(model)["linear"] == {"c.weight"}


def test_a_family_without_linear_layers_says_so() -> None:
    """GPT-2's are Conv1D, and its head is tied."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16, n_positions=8))
    assert kinds(model)["embeddings"] == {"transformer.wte.weight", "transformer.wpe.weight"}
    with pytest.raises(UserError, match=r"'linear' names none of the model's .* Linear layers"):
        allowed_in(model, ["linear"], (), density=0.1)
    total = sum(math.prod(shape) for shape in tiny.shapes(model).values())
    assert allowed_in(model, (), ["embeddings"], density=0.1).num_allowed == total - (16 + 8) * 8


EXPERTS = {
    "model.layers.1.mlp.experts.3.gate_proj.weight": (4, 4),
    "model.layers.1.block_sparse_moe.experts.3.w1.weight": (4, 4),
    "model.layers.1.mlp.experts.gate_up_proj": (2, 4, 4),
    "model.layers.1.mlp.experts.gate_up_proj_bias": (2, 4),
    "model.layers.1.block_sparse_moe.input_linear.weight": (2, 4, 4),
}
OTHERS = {
    "model.layers.1.mlp.shared_experts.gate_proj.weight": (4, 4),
    "model.layers.1.mlp.shared_expert_gate.weight": (1, 4),
    "model.layers.1.mlp.gate.weight": (2, 4),
    "model.layers.1.block_sparse_moe.router.layer.weight": (2, 4),
    "model.layers.1.shared_mlp.input_linear.weight": (4, 4),
    "model.layers.1.mamba.conv1d.weight": (4, 1, 4),
}
VISION = {
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": (4, 4),
    "visual.blocks.0.attn.qkv.weight": (4, 4),
    "model.visual.patch_embed.proj.weight": (4, 4),
    "multi_modal_projector.mm_input_projection_weight": (4, 4),
    "model.embed_vision.embedding_projection.weight": (4, 4),
}


@pytest.mark.parametrize(("kind", "wanted"), [("experts", EXPERTS), ("vision", VISION)])
def test_experts_and_vision_are_known_by_their_names_on_disk(
    kind: str, wanted: dict[str, tuple[int, ...]]
) -> None:
    every = EXPERTS | OTHERS | VISION
    found = allowed_tensors(every, kinds_unknown, include=[kind], exclude=(), density=0.01)
    assert found.names == wanted.keys()
    rest = allowed_tensors(every, kinds_unknown, include=(), exclude=[kind], density=0.01)
    assert rest.names == every.keys() - wanted.keys()


def test_every_kind_has_a_rule() -> None:
    shapes = EXPERTS | VISION | {"linear": (2, 2), "embed": (2, 2)}
    kinds = {"linear": {"linear"}, "embeddings": {"embed"}}
    for kind in KINDS:
        found = allowed_tensors(shapes, lambda: kinds, include=[kind], exclude=(), density=0.01)
        assert 0 < found.num_allowed < found.num_weights


class Router(nn.Linear):
    """A router as Llama 4's and PhiMoE's: a Linear layer by class that returns scores and logits."""

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        logits = super().forward(hidden)
        return logits.softmax(-1), logits


class Scaled(nn.Linear):
    """A Linear layer with a forward pass of its own, as Falcon's."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 2


def test_a_layer_that_returns_more_than_a_tensor_is_not_linear() -> None:
    model = nn.ModuleDict({"plain": nn.Linear(3, 2), "scaled": Scaled(3, 2), "router": Router(3, 2)})
    assert kinds_of(model)["linear"] == {"plain.weight", "scaled.weight"}
