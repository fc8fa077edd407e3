"""A function of the user's own that a recipe names as `file.py:function`: a scorer, or a loss."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from allo.errors import UserError

OwnFunction = Annotated[str, StringConstraints(pattern=r"^.+\.py:[A-Za-z_]\w*$")]
"""`path/to/file.py:function`. Naming it in a recipe runs the file, as naming a script to python does."""


def own_file(name: str) -> Path | None:
    """The file of `file.py:function`; None for any other name."""
    file, colon, function = name.rpartition(":")
    return Path(file).expanduser() if colon and file.endswith(".py") and function.isidentifier() else None


def load_function(name: str, *, key: str) -> Callable[..., Any]:
    """The function that a recipe's `key` names as `file.py:function`.

    Raises `UserError` where there is no such file, it fails to load, or it has no such function.
    """
    path = own_file(name)
    assert path is not None, name
    function = name.rpartition(":")[2]
    if not path.is_file():
        raise UserError(f"{key}: {path}: there is no such file. Give the path of a Python file.")
    own_name = f"allo_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(own_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{key}: {path} fails to load: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        own = sorted(
            each
            for each, value in vars(module).items()
            if callable(value) and not each.startswith("_") and value.__module__ == own_name
        )
        raise UserError(f"{key}: {path} has no function {function!r}; it has {', '.join(own) or 'none'}.")
    assert callable(found)
    return found
