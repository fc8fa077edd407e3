"""Low-redundancy alignment of language models: few weights, few tokens, two steps.

These names are public, and those that `allo.losses`, `allo.tokens` and `allo.weights` export; all else may move. They load when
first used, so that `import allo` and `allo --help` take no torch.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from allo.lazy import names_of

if TYPE_CHECKING:
    from allo.delta.patch import apply as apply_delta
    from allo.models.shards import load_shards
    from allo.pipeline import run_all as run
    from allo.recipe import load_recipe
    from allo.tokens.scoring import score
    from allo.training.feedback_trainer import FeedbackTrainer
    from allo.training.locating import locate
    from allo.training.trainer import ForgetTrainer, ImproveTrainer
    from allo.weights.param_mask import ParamMask
    from allo.weights.selected import SelectedWeights

__version__ = version("allo-align")
__all__ = [
    "FeedbackTrainer",
    "ForgetTrainer",
    "ImproveTrainer",
    "ParamMask",
    "SelectedWeights",
    "__version__",
    "apply_delta",
    "load_recipe",
    "load_shards",
    "locate",
    "run",
    "score",
]

__getattr__, __dir__ = names_of(
    __name__,
    {
        "FeedbackTrainer": "allo.training.feedback_trainer:FeedbackTrainer",
        "ForgetTrainer": "allo.training.trainer:ForgetTrainer",
        "ImproveTrainer": "allo.training.trainer:ImproveTrainer",
        "ParamMask": "allo.weights.param_mask:ParamMask",
        "SelectedWeights": "allo.weights.selected:SelectedWeights",
        "apply_delta": "allo.delta.patch:apply",
        "load_recipe": "allo.recipe:load_recipe",
        "load_shards": "allo.models.shards:load_shards",
        "locate": "allo.training.locating:locate",
        "run": "allo.pipeline:run_all",
        "score": "allo.tokens.scoring:score",
    },
)
