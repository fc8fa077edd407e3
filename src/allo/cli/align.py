"""`allo align`: from a model and rows to an aligned model, by a recipe that it writes. Imports are late."""

import json
import os
import shlex
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allo.cli.shared import Overrides, Processes, Quiet, count_tokens
from allo.console import say, tell
from allo.errors import UserError
from allo.files.artifacts import RunFolder, write_atomic
from allo.files.changes import differences, was_and_now
from allo.files.manifest import stages_done
from allo.files.rows import TRAIN, Notes, named, source_rows, stem
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe, read_recipe
from allo.recipe.own_code import FORM, own_file
from allo.recipe.starting import ROWS_KEY, StartKind, run_name, start_text
from allo.recipe.text import assignment, with_values
from allo.tasks.own_rewards import try_functions
from allo.tasks.row_kinds import FIRST, Kind, kind_of_rows
from allo.tasks.sources import Sources, sources_read

if TYPE_CHECKING:
    from allo.plan.starting import Decision

EARLIER = "align.before.yaml"
"""The recipe in the run's folder that another one replaced."""
STARTS: dict[Kind, tuple[StartKind, str]] = {
    "pairs": ("pairs", "preference pairs; nothing is sampled"),
    "rated": ("pairs", "rated completions, which become pairs; nothing is sampled"),
    "feedback": ("feedback", "answers labelled good or bad; nothing is sampled"),
    "problems": ("problems", "prompts with right answers, by which samples are judged"),
    "prompts": ("reward", "prompts; samples are judged by the reward"),
}
"""The recipe for each kind of rows, and the kind's meaning."""
ROWS = ("data.pairs", "data.feedback", "data.file")
REWARDS = ("judge", "judge.function", "judge.reward_model")


def align_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id or a GGUF file.")],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Your rows: a file, a saved data set, or one of the hub."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder. Default: runs/DATA-MODEL.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of the GPU, such as 24GB: every stage is made to fit."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:NAME", help="A reward function, as TRL's GRPOTrainer takes it."),
    ] = None,
    overrides: Overrides = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used, and count them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the recipe and what it trains on; write nothing.")
    ] = False,
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Align MODEL on DATA: read the rows, choose the settings, write the recipe, run it. Call it again to resume."""
    limit = None if gpu is None else _size(gpu)
    given = [*(overrides or []), *(["data.skip_bad=true"] if skip_bad else [])]
    draft = _Draft(model, data, out, reward or [], given)
    run = RunFolder(draft.recipe.run_folder)
    _refuse_another(draft.recipe, run, among=draft.stated)
    sources, is_chat = _read(draft.recipe), draft.recipe.chat
    from allo.plan import starting

    draft.take(starting.for_model(draft.recipe, draft.rows))
    if draft.recipe.chat != is_chat:
        sources = sources_read(draft.recipe)
    draft.take(starting.for_rows(draft.recipe, sources))
    if limit is not None:
        draft.take(starting.for_gpu(draft.recipe, limit), must=True)
    recipe, path = draft.recipe, run.align
    _refuse_another(recipe, run)
    if dry_run:
        from allo.plan.preview import preview
        from allo.plan.preview_page import show

        found = preview(recipe, sources)  # what is wrong is said before the recipe
        tell(f"\n# {path}, not written\n{draft.text}")
        show(found, plain=False)
        say("nothing was written; without --dry-run it is run")
        return
    _write(path, draft.text, recipe)
    run_all(recipe, tokens=count_tokens)
    from allo.cli.result import show_result

    show_result(recipe, run)
    say(f"  go on with other settings: allo run {shlex.quote(str(path))} --set KEY=VALUE")


def _read(recipe: Recipe) -> Sources:
    """Read the rows and try the reward on some. Raises `UserError` for bad rows, settings and functions, before a model is read."""
    from allo.stages.settings import check_settings

    check_settings(recipe)
    sources = sources_read(recipe)
    if not recipe.data.is_ready:
        try_functions(recipe.judge, {"data": sources.prompts(recipe.data)}, None)
    return sources


def _size(gpu: str) -> int:
    from allo.plan.memory import parse_size

    return parse_size(gpu)


class _Draft:
    """A start recipe while settings are put into it. Each is said; those of `--set` stay as they are given."""

    def __init__(
        self, model: str, data: str, out: Path | None, reward: list[str], overrides: list[str]
    ) -> None:
        self._given = dict(map(assignment, overrides))
        split, config = str(self._given.get("data.split", TRAIN)), self._given.get("data.config")
        kind = kind_of_rows(data, split=split, config=config)
        rows = source_rows(data, split=split, config=config, notes=Notes())
        self.rows = [row for _, _, row in islice(rows, FIRST)]
        start, meaning = self._start(kind, data, reward)
        say(f"data: {data} has {meaning}")
        folder = _folder(out, data, model)
        self._template = start_text(start)
        self._reasons: dict[str, list[str]] = {}
        self._values: dict[str, Any] = {
            "name": folder.name,
            "out": str(folder.parent),
            "model": model,
            "data": {ROWS_KEY[start]: data},
        }
        if start == "reward":
            self._values["judge"] = {"function": reward[0] if len(reward) == 1 else reward} if reward else {}

    def _start(self, kind: Kind, data: str, reward: list[str]) -> tuple[StartKind, str]:
        """Return the start recipe for rows, and their meaning. Raises `UserError` for a reward too many or missing."""
        start, meaning = STARTS[kind]
        if other := [each for each in reward if own_file(each) is None]:
            raise UserError(f"--reward {other[0] or repr('')}: {FORM}.")
        rewarded = bool(reward) or any(self._given.get(key) for key in REWARDS)
        if start in ("pairs", "feedback") and reward:
            raise UserError(
                f"--reward: {data} has {meaning}, and so no judge: remove --reward, or give prompts alone."
            )
        if kind == "prompts" and not rewarded:
            columns = ", ".join(map(named, dict.fromkeys(name for row in self.rows for name in row)))
            raise UserError(
                f"{data}: has prompts without `answer`, so nothing says which samples are good; its columns are "
                f"{columns}. Preference pairs need `chosen` and `rejected`: rename yours. Otherwise add "
                "`answer`, give a function with --reward FILE.py:NAME (`allo init reward` writes one), or a reward model with "
                "--set judge.reward_model=MODEL."
            )
        if kind == "problems" and rewarded:
            return "reward", "prompts; samples are judged by the reward, not by `answer`"
        return start, meaning

    @property
    def stated(self) -> set[str]:
        """The keys whose values the user has given; the others are chosen."""
        return {"model", *ROWS, *self._given}

    @property
    def text(self) -> str:
        return with_values(self._template, self._values | self._given, reasons=self._reasons)

    @property
    def recipe(self) -> Recipe:
        return read_recipe(self.text, path=Path("align.yaml"), given=self._given)

    def take(self, decisions: "Iterable[Decision]", *, must: bool = False) -> None:
        """Say each decision and put it into the recipe, apart from what `--set` gives.

        With `must`, raise `UserError` for a value that `--set` gives otherwise.
        """
        for decision in decisions:
            kept = {key: value for key, value in decision.settings.items() if not self._is_given(key)}
            overruled = [
                key
                for key in decision.settings
                if key not in kept and self._given.get(key) != decision.settings[key]
            ]
            if must and overruled:
                raise UserError(
                    f"--set {overruled[0]}: --gpu needs {json.dumps(decision.settings[overruled[0]])} there "
                    f"({decision.reason}): remove one of them."
                )
            if kept or not decision.settings:
                say(replace(decision, settings=kept).sentence)
                # Said once, at the first of the blocks that it sets.
                for name in sorted({key.split(".")[0] for key in kept}, key=self._place)[:1]:
                    self._reasons.setdefault(name, []).append(
                        f"{decision.reason[0].upper()}{decision.reason[1:]}."
                    )
            self._values |= kept

    def _place(self, name: str) -> tuple[int, str]:
        """Return what orders blocks as in the recipe's text."""
        return f"\n{self._template}\n{name}:".index(f"\n{name}:"), name

    def _is_given(self, key: str) -> bool:
        """Return whether `--set` gives the key, its block or a part of it."""
        return any(f"{key}.".startswith(f"{each}.") or each.startswith(f"{key}.") for each in self._given)


def _folder(out: Path | None, data: str, model: str) -> Path:
    """Return the run's folder, and say it. Raises `UserError` for a name that no run can have."""
    last = Path(model).expanduser().name.removesuffix(".gguf")
    folder = out or Path("runs") / run_name(f"{stem(Path(data))}-{last}")
    if run_name(folder.name) != folder.name:
        raise UserError(
            f"--out {folder}: the folder's name is the run's: give one of letters, digits, `.`, `_` and `-`, such as "
            f"{folder.parent / run_name(folder.name)}."
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: there is a file of this name; give the name of a folder.")
    say(f"out: {folder}{'' if out else ', the default'}")
    return folder


def _refuse_another(recipe: Recipe, run: RunFolder, *, among: Collection[str] = ()) -> None:
    """Raise `UserError` if the folder holds finished work of other settings; of these keys alone, if `among` has any."""
    resolved = run.path / "recipe.yaml"
    if not (resolved.is_file() and stages_done(run)):
        return
    earlier = load_recipe(resolved)
    ours, theirs = (json.loads(each.model_dump_json()) for each in (recipe, earlier))
    changed = [each for each in differences(theirs, ours) if not among or each[0] in among]
    if not changed:
        return
    raise UserError(
        f"{run.path}: holds a run with other settings: {was_and_now(changed)}. Begin another with --out DIR, go on "
        f"with it by `allo run {shlex.quote(str(resolved))}` (its own settings; --set KEY=VALUE changes one), or remove the "
        "folder."
    )


def _write(path: Path, text: str, recipe: Recipe) -> None:
    """Write the recipe into its run's folder. An earlier one that differs is kept beside it; an equal one stays."""
    if path.is_file():
        try:
            if load_recipe(path) == recipe:
                say(f"{path}: there already, with the same settings")
                return
        except UserError:
            pass  # no recipe, or of another version
        os.replace(path, path.with_name(EARLIER))
        say(f"{path}: the earlier one differs, and is now {EARLIER}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    say(f"{path}: the recipe of this run")
