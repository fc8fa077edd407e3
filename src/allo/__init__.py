"""Low-redundancy alignment of language models: few weights, few tokens, two steps.

The public names load when first used, so that `import allo` and `allo --help` take no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allo.training.trainer import ForgetTrainer, ImproveTrainer
    from allo.weights.param_mask import ParamMask
    from allo.weights.selected import SelectedWeights

__version__ = version("allo-align")
__all__ = ["ForgetTrainer", "ImproveTrainer", "ParamMask", "SelectedWeights", "__version__"]

_ROOMS = {
    "ForgetTrainer": "allo.training.trainer",
    "ImproveTrainer": "allo.training.trainer",
    "ParamMask": "allo.weights.param_mask",
    "SelectedWeights": "allo.weights.selected",
}


def __getattr__(name: str) -> object:
    """Import a public name from its room (PEP 562); unknown names raise AttributeError as usual."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'allo' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
