"""Functions that recipes and tables name: users' own as `file.py:function`, the library's as `module:function`."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from allo.errors import UserError

PATTERN = r"^.+\.py:[A-Za-z_]\w*$"
"""`path/to/file.py:function`. Naming it in a recipe runs the file, just as passing a script to python does."""
FORM = "not of the form FILE.py:NAME, a Python file and a function in it"


def own_file(name: str) -> Path | None:
    """Return the file of `file.py:function`; None for any other name."""
    file, colon, function = name.rpartition(":")
    return Path(file).expanduser() if colon and file.endswith(".py") and function.isidentifier() else None


def function_of(name: str, *, key: str) -> Callable[..., Any]:
    """Return the function that a recipe's `key` or the record of a table names.

    Raises `UserError` if it is the user's own and cannot be loaded.
    """
    if own_file(name) is not None:
        return load_function(name, key=key)
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def load_function(name: str, *, key: str) -> Callable[..., Any]:
    """Return the function that a recipe's `key` names as `file.py:function`.

    An error in it becomes a `UserError` naming the function and its line. Raises `UserError` if the file does not
    exist, fails to load, or lacks the function.
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
    sys.modules[own_name] = module  # dataclasses look up their own module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # includes a script that calls sys.exit()
        raise UserError(f"{key}: {path} fails to load{_raised(error, path)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        own = sorted(
            each
            for each, value in vars(module).items()
            if callable(value) and not each.startswith("_") and getattr(value, "__module__", "") == own_name
        )
        raise UserError(f"{key}: {path} has no function {function!r}; it has {', '.join(own) or 'none'}.")
    return _named(found, name, path, key=key)


def _named(found: Callable[..., Any], name: str, path: Path, *, key: str) -> Callable[..., Any]:
    """Return the function with its name added to its errors, also to a generator's or coroutine's.

    Its signature is unchanged.
    """

    @contextlib.contextmanager
    def errors_named() -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, GeneratorExit, UserError):
            raise
        except BaseException as error:
            raise UserError(f"{key}: {name} fails{_raised(error, path)}") from error

    def iterated(items: Iterator[Any]) -> Iterator[Any]:
        with errors_named():
            yield from items

    async def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with errors_named():
            return await coroutine

    @functools.wraps(found)
    def called(*args: Any, **named: Any) -> Any:
        with errors_named():
            returned = found(*args, **named)
        if inspect.iscoroutine(returned):
            return awaited(returned)
        return iterated(returned) if isinstance(returned, Iterator) else returned

    return called


def _raised(error: BaseException, path: Path) -> str:
    """Return the error in words, with the last line of the file that led to it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path.absolute())
    ]
    where = f" in line {lines[-1]}" if lines else ""
    return f"{where}: {type(error).__name__}: {error}"
