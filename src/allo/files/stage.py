"""A stage of a run, and the stages of a run in rounds."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_as, remove
from allo.files.manifest import stages_done
from allo.files.rounds import of_round, round_name
from allo.recipe import Recipe

_SHARED = {"sft", "sample", "judge", "locate", "score", "forget", "improve", "evaluate"}


@dataclass(frozen=True)
class Stage:
    """One step of a run. `reads` and `writes` are names in the run's folder; `keys` the recipe blocks it depends on.

    `verb` is the module of `allo.stages` that runs it, if its name differs from the stage's.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    keys: tuple[str, ...]
    verb: str | None = None

    @property
    def is_shared(self) -> bool:
        """Return whether all ranks run it; otherwise rank 0 does."""
        return (self.verb or self.name) in _SHARED

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe as this stage sees it."""
        return recipe

    def run(self, recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
        module = importlib.import_module(f"allo.stages.{self.verb or self.name}")
        counts: dict[str, Any] = module.run(self.recipe(recipe), folder)
        return counts

    def leaves(self, folder: RunFolder) -> list[Path]:
        """Return the paths that the stage writes, existing or not, and their unfinished parts."""
        parts = [path for name in self.writes for path in folder.path.glob(f"{name}*.part")]
        return [folder.path / name for name in self.writes] + parts

    def begun(self, folder: RunFolder) -> Path:
        """Return the path of the stage's `Mark`, written when it begins."""
        path = folder.path / self.name
        return path.with_name(f".{path.name}.begun")


@dataclass(frozen=True)
class StageOfRound(Stage):
    """A stage in the folder of round `number`, under that round's recipe."""

    number: int = 1

    def recipe(self, recipe: Recipe) -> Recipe:
        return of_round(recipe, self.number)

    def run(self, recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
        return super().run(recipe, RunFolder(folder.path / round_name(self.number)))


@dataclass(frozen=True)
class Mark:
    """A begun stage: its hash, and the seconds that earlier processes worked on it."""

    hash: str
    seconds: float


def read_mark(path: Path) -> Mark | None:
    """Return the mark of a begun stage; None if it is missing or unreadable."""
    with contextlib.suppress(UserError, OSError):
        return read_as(path, Mark)
    return None


def remove_old_marks(stages: Sequence[Stage], folder: RunFolder) -> None:
    """Remove the marks of stages that were recorded as finished just before a kill.

    Otherwise such a stage would pass for an interrupted one if its files were damaged later.
    """
    done = stages_done(folder)
    for stage in stages:
        mark = read_mark(stage.begun(folder))
        if stage.name in done and (mark is None or mark.hash == done[stage.name]["hash"]):
            remove(stage.begun(folder))


def in_rounds(stages: Sequence[Stage], recipe: Recipe) -> list[Stage]:
    """Return a recipe's stages with everything between `sft` and `evaluate` repeated in rounds.

    The last training stage's output at the top is then the difference that all rounds made together.
    """
    sft, *alignment, evaluate, report = stages
    last = alignment[-1]
    rounds = [
        stage
        for number in range(1, recipe.rounds + 1)
        for stage in _stages_of_round(number, alignment, recipe)
    ]
    results = tuple(f"{round_name(number)}/{last.writes[0]}" for number in range(1, recipe.rounds + 1))
    united = Stage(last.name, ("00-sft", *results), last.writes, (), verb="unite")
    return [sft, *rounds, united, evaluate, report]


def _stages_of_round(number: int, alignment: Sequence[Stage], recipe: Recipe) -> Iterator[Stage]:
    """Yield one round's stages: its starting model, then the alignment. Later rounds may keep the first's importance."""
    here, first = round_name(number), round_name(1)
    result = alignment[-1].writes[0]
    yield StageOfRound(
        f"{here}/begin",
        ("00-sft" if number == 1 else f"{round_name(number - 1)}/{result}",),
        (f"{here}/00-sft",),
        (),
        verb="begin",
        number=number,
    )
    for stage in alignment:
        own = StageOfRound(
            f"{here}/{stage.name}",
            tuple(f"{here}/{name}" for name in stage.reads),
            tuple(f"{here}/{name}" for name in stage.writes),
            stage.keys,
            verb=stage.verb or stage.name,
            number=number,
        )
        if stage.name == "locate" and number > 1 and not recipe.relocate:
            reads = (f"{here}/00-sft", f"{first}/04-importance.safetensors")
            own = replace(own, reads=reads, keys=(), verb="keep")
        yield own
