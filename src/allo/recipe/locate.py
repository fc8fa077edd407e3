"""The recipe's block `locate`."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from allo.recipe.criteria import CRITERIA, CriterionName
from allo.recipe.granularity import PATTERN, WEIGHT, granularity_name
from allo.recipe.numbers import Positive, Tokens
from allo.recipe.sources import Block
from allo.recipe.training import Group, Training

KINDS = {
    "linear": "the weights of Linear layers that no other layer shares, without biases",
    "experts": "a mixture's routed experts, without routers and shared experts",
    "embeddings": "token and position embeddings, with an output head that is tied to them",
    "vision": "the vision tower and its projector",
}
"""Words that stand for a kind of tensors in `include` and `exclude`, with their meanings."""
GranularityName = Annotated[
    str, AfterValidator(granularity_name), Field(json_schema_extra={"pattern": f"^({PATTERN})$"})
]
TensorPattern = Annotated[
    str,
    Field(pattern=r"\S", max_length=4096, json_schema_extra={"examples": [*KINDS, "*.q_proj.weight"]}),
]


class Locate(Block):
    """The choice of the weights that matter (method.md 1.1)."""

    criterion: CriterionName = "warmup_fused"
    """`warmup_fused` trains all weights and updates each tensor inside the backward pass, with 6 bytes of host memory a
    weight; `warmup` trains them with an optimizer's state, as published.
    `gradient`, `fisher` and `taylor` sum over the pairs at the starting model. `last` takes weights from the last
    layer backwards; embeddings, the head and norms outside the layers come last. Within a layer, as in any tie, a
    stable hash decides. You can also name your own function as `file.py:function` (docs/extending.md)."""
    include: list[TensorPattern] = []
    """Select weights only in these tensors; an empty list stands for all. An entry is `linear`, `experts`, `embeddings`
    or `vision`, or a pattern for the whole name in the checkpoint, such as `"*.q_proj.weight"`; `*` also crosses dots. A
    warm-up trains no other weights. A density is still a share of all weights (docs/masks-and-deltas.md)."""
    exclude: list[TensorPattern] = []
    """Select no weights in these tensors, even if `include` names them."""
    granularity: GranularityName = WEIGHT
    """Whole rows, columns or blocks are selected by the root mean square of their scores. Rows and columns of linear
    layers also make the backward pass cheaper."""
    beta: Positive = 0.1
    accumulate: Literal["float32", "bfloat16"] = "float32"
    """The type of the sums of `gradient`, `fisher` and `taylor` in host memory: 4 or 2 bytes per weight."""
    max_tokens_per_batch: Tokens | None = None
    """As in forget and improve; `fisher` always takes single pairs, and `warmup_fused` updates once per micro-batch."""
    group: Group = "none"
    """As in forget and improve."""
    training: Training = Training()

    @model_validator(mode="after")
    def _scores_have_a_norm(self) -> "Locate":
        known = CRITERIA.get(self.criterion)
        if known and not known.ranks_groups and self.granularity != WEIGHT:
            raise ValueError(
                f"criterion {known.name!r} mirrors the scores of single weights, which have no norm: "
                "set granularity to weight"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_empty_patterns(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `include`, `exclude` and `group` at their defaults, so that runs from before these keys stay valid."""
        return {key: value for key, value in handler(self).items() if value != _NEW.get(key, ...)}


_NEW: dict[str, Any] = {"include": [], "exclude": [], "group": "none"}
