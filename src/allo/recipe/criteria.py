"""The criteria of importance, one record each: recipe, checks, planner and stage derive what they say from here."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from allo.errors import UserError
from allo.recipe.choice import OneOf
from allo.recipe.own_code import load_function, own_file

Needs = Literal["weights", "layers", "hashes", "gradients", "squared gradients", "warm-up", "fused warm-up"]
"""The statistic of each weight that a criterion is given beside the weight:

- `weights`: the weight once more, as nothing else is needed;
- `layers`: the place of its layer;
- `hashes`: a hash of its place under the recipe's seed;
- `gradients`, `squared gradients`: the sum of g over all pairs, or of g^2 over single pairs, at the starting model;
- `warm-up`: the weight after a short DPO training of all weights;
- `fused warm-up`: its change in such a training without an optimizer's state.
"""


@dataclass(frozen=True)
class Criterion:
    """A way of scoring weights.

    `function` maps a tensor's weights and its statistic to scores, as `module:function`. `ranks_groups`: whether its
    scores have a norm, by which whole rows, columns or blocks can be selected.
    """

    name: str
    function: str
    needs: Needs
    ranks_groups: bool = True

    @property
    def sums(self) -> bool:
        """Whether something is summed over the pairs at the starting model."""
        return self.needs in ("gradients", "squared gradients")

    @property
    def trains(self) -> bool:
        """Whether a model is warmed up, which the scorer `implicit` can ask."""
        return self.needs in ("warm-up", "fused warm-up")

    @property
    def sees_pairs(self) -> bool:
        return self.sums or self.trains


CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion("warmup", "allo.weights.importance:delta", needs="warm-up"),
        Criterion("warmup_fused", "allo.weights.importance:change", needs="fused warm-up"),
        Criterion("gradient", "allo.weights.importance:gradient", needs="gradients"),
        Criterion("fisher", "allo.weights.importance:fisher", needs="squared gradients"),
        Criterion("taylor", "allo.weights.importance:taylor", needs="gradients"),
        Criterion("magnitude", "allo.weights.importance:magnitude", needs="weights"),
        Criterion("bottom", "allo.weights.importance:bottom", needs="warm-up", ranks_groups=False),
        Criterion("last", "allo.weights.importance:last", needs="layers"),
        Criterion("random", "allo.weights.importance:random", needs="hashes"),
    )
}
CriterionName = Annotated[str, OneOf(CRITERIA, or_own=True)]


def criterion_of(name: str) -> Criterion:
    """Return the record of a recipe's criterion.

    A function of the user's own says what it needs (`allo.weights.importance.criterion`); without a word it is given
    gradients. Raises `UserError` if it is not there.
    """
    if own_file(name) is None:
        return CRITERIA[name]
    needs: Any = getattr(load_function(name, key="locate.criterion"), "needs", "gradients")
    if needs not in get_args(Needs):
        raise UserError(
            f"locate.criterion: {name} needs {needs!r}, which is no statistic; choose one of {', '.join(get_args(Needs))}."
        )
    return Criterion(name, name, needs=needs)
