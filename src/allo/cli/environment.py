"""The version and the environment, for a report of a fault."""

import importlib.metadata
import json
from typing import Annotated

import typer

from allo.console import tell


def _print_version(asked: bool) -> None:
    if asked:
        tell(f"allo {importlib.metadata.version('allo-align')}")
        raise typer.Exit


def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options of `allo` itself."""


def env_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print versions, device and memory, for a report of a fault. It has no secrets and no paths."""
    from allo.models.environment import environment

    found = environment()
    if as_json:
        tell(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        tell(f"{name:<14} {value}")
