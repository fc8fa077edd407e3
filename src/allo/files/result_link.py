"""The link `model` at the top of a run's folder to the run's result, and ways to use it."""

import os
import shlex
from pathlib import Path

from allo.console import say
from allo.files.artifacts import RunFolder, remove


def result_of(run: RunFolder, folder: Path) -> Path:
    """Return the place of the run's result: its link if it leads to the model in `folder`, otherwise `folder`."""
    return run.model if is_linked(run, folder) else folder


def is_linked(run: RunFolder, folder: Path) -> bool:
    """Return whether the run's link leads to `folder`."""
    return run.model.is_symlink() and os.readlink(run.model) == _target(run, folder)


def link(run: RunFolder, folder: Path) -> None:
    """Make the run's `model` a relative link to `folder`, a model below the run's own folder.

    Where no link can be made, or something else of this name is in the way, it says where the model is instead.
    """
    if run.model.exists() and not run.model.is_symlink():
        say(f"{run.model}: no link of allo, so it is left as it is. The run's model is {folder}")
        return
    part = run.path / ".model.part"
    try:
        remove(part)
        part.symlink_to(_target(run, folder), target_is_directory=True)
        os.replace(part, run.model)
    except OSError as error:
        say(f"{run.model}: no link can be made here ({error.strerror}). The run's model is {folder}")


def remove_broken_link(run: RunFolder) -> None:
    """Remove the run's link if the model that it leads to is gone."""
    if run.model.is_symlink() and not run.model.exists():
        run.model.unlink()


def uses(model: str, delta: str, *, run: str, base: str = "BASE") -> list[tuple[str, str]]:
    """Return what can be done with a run's result, its folder and its delta: (purpose, command).

    `base` is the place of the model that the delta belongs to.
    """
    folder, file = shlex.quote(model), shlex.quote(delta)
    return [
        ("load in transformers", f"AutoModelForCausalLM.from_pretrained({model!r})"),
        ("serve with vLLM", f"vllm serve {folder}"),
        ("upload to the hub, with its card", f"allo push {shlex.quote(run)} OWNER/NAME"),
        ("share the delta alone", f"allo delta push {file} OWNER/NAME"),
        (
            "share it as a file: whoever has the base makes the model",
            f"allo delta apply {shlex.quote(base)} {file} OUT",
        ),
        ("convert to GGUF, in a checkout of llama.cpp", f"python convert_hf_to_gguf.py {folder}"),
    ]


def _target(run: RunFolder, folder: Path) -> str:
    return os.path.relpath(folder, run.path)
