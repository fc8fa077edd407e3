"""The model card of a run, beside its report."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from allo.delta import info
from allo.errors import UserError
from allo.files.artifacts import RunFolder, sha256_file, write_atomic
from allo.files.rounds import trained
from allo.files.rows import is_hub_id
from allo.models.licence import licence_of
from allo.models.start import read_start
from allo.recipe import Recipe, load_recipe
from allo.recipe.sources import Data, Source
from allo.report.card import Facts, card
from allo.report.read import view
from allo.training.result import DELTA


def write_card(recipe: Recipe, run: RunFolder) -> None:
    """Write `model-card.md` of a finished run. It stands beside the model, whose folder is hashed as it was trained."""
    delta = trained(recipe, run) / DELTA
    found, start = info(delta), read_start(run)
    base = Path(recipe.model).name if Path(recipe.model).expanduser().exists() else recipe.model
    facts = Facts(
        base=base,
        licence=licence_of(recipe.model),
        data=list(_data(recipe)),
        method=list(_method(recipe)),
        changed=found.num_changed,
        num_weights=found.num_weights,
        base_fingerprint=found.base_fingerprint,
        delta_digest=sha256_file(delta),
        starts_at_base=not Path(start.model).resolve().is_relative_to(run.path.resolve()),
        command=_command(recipe, run, base),
    )
    write_atomic(run.card, card(view(run.path), facts))


def _command(recipe: Recipe, run: RunFolder, base: str) -> str:
    """Return the command that made the run, without the folders of local files."""
    if not run.align.is_file():
        return "allo run recipe.yaml"
    data = recipe.data.pairs or recipe.data.feedback or recipe.data.file
    try:
        is_written = data is not None and load_recipe(run.align) == recipe
    except UserError:  # edited since
        is_written = False
    if data is None or not is_written:
        return "allo run recipe.yaml"  # with --set, or edited
    return f"allo align {shlex.quote(base)} {shlex.quote(str(data) if is_hub_id(data) else Path(data).name)}"


def _data(recipe: Recipe) -> Iterator[str]:
    """Yield the origins of all rows, without the folders of local files."""
    for source in recipe.sft.sources if recipe.sft else []:
        yield f"fine-tuned on the solutions of {origin_of(source)}"
    origins: Sequence[Source] = recipe.data.mixture or [recipe.data]
    yield from map(origin_of, origins)


def origin_of(source: Source) -> str:
    if isinstance(source, Data) and source.pairs is not None:
        return f"preference pairs of {_place(source.pairs, source)}"
    if isinstance(source, Data) and source.feedback is not None:
        return f"labelled completions of {_place(source.feedback, source)}"
    if source.file is not None:
        return f"prompts of {_place(source.file, source)}"
    name = source.hub or (source.task or "").rpartition("/")[2]
    return f"{'data set of the hub' if source.hub else 'task'} {name}, split {source.split}"


def _place(path: Path, source: Source) -> str:
    """Return a file's name, or a data set of the hub with its configuration and split."""
    if not is_hub_id(path):
        return f"the file {path.name}"
    config = f", config {source.config}" if source.config else ""
    return f"the data set {path} of the hub{config}, split {source.split}"


def _method(recipe: Recipe) -> Iterator[str]:
    """Yield the training stages in order, with the settings that name a method."""
    if recipe.rounds > 1:
        yield f"{recipe.rounds} rounds of what follows"
    if recipe.locate is not None:
        yield f"weights located by {recipe.locate.criterion.rpartition('/')[2]}, one {recipe.locate.granularity} at a time"
    if recipe.forget is not None and recipe.score is not None:
        one = recipe.forget
        scorers = ", ".join(scorer.name for scorer in recipe.score.entries)
        yield (
            f"forget: NPO loss {one.loss.rpartition('/')[2]}, tokens scored by {scorers}, beta {one.beta:g}, "
            f"learning rate {one.training.learning_rate:g}, density {one.density:g}"
        )
    if recipe.improve is not None:
        two = recipe.improve
        loss = two.loss.rpartition("/")[2] if two.trained_by.selects else f"trainer {two.trainer}"
        yield (
            f"improve: {loss}, beta {two.beta:g}, learning rate {two.training.learning_rate:g}, density {two.density:g}"
        )
