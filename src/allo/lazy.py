"""Public names that load when first used, so that importing a room takes no torch."""

from collections.abc import Callable, Mapping
from importlib import import_module


def names_of(
    room: str, addresses: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a room's `__getattr__` and `__dir__` (PEP 562) for public names, each at its `module:name`.

    Other names raise AttributeError as usual.
    """

    def load(name: str) -> object:
        if name not in addresses:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        module, _, attribute = addresses[name].partition(":")
        return getattr(import_module(module), attribute)

    def names() -> list[str]:
        return sorted({*vars(import_module(room)), *addresses})

    return load, names
