"""The report's tables, built once: the page and the Markdown show the same cells."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from allo.console import printable
from allo.files.evaluation import (
    Accuracy,
    Evaluated,
    Measured,
    ModelResult,
    Overlap,
    Rate,
    Rewards,
    SetResult,
)
from allo.report import figures
from allo.report.paired import difference, values
from allo.report.run_view import RunView, StageRecord

# Each match begins with a character that Markdown would read. Signs between spaces and underscores in words are text.
_MARKUP = re.compile(
    r"""
    [`|] | \\(?=[!-/:-@\[-`{-~]|$) | \*(?!(?<=\s.)\s) | (?<![^\W_])_ | _(?![^\W_]) | (?<=\S)~ | ~(?![\s\d]|$)
    | \](?=[(\[:]) | &(?=\#?\w+;)
    | ^(?:\#{1,6}|[-+*>]|=+|-{3,})(?=\s|$) | ^>
    """,
    re.VERBOSE,
)
_TAG = re.compile("<(?=[A-Za-z/!?])")
_ITEM = re.compile(r"^(\d+)(?=[.)](\s|$))")


CHANGE = "a change is since the start on the same prompts, with its interval over them"


@dataclass(frozen=True)
class Cell:
    """A cell's text, its interval or remark, and the exact value behind it."""

    text: str
    note: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A titled table; the first column names the row, the others are numbers or short texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    remark: str = ""


@dataclass(frozen=True)
class Model:
    """One row of the results: a model, its start, its label, and its colour (0 for a start).

    `warmed_up`: its weights were located by briefly training all of them. `answers` and `before` are the completions
    of the model and of its start by set, if the run has both.
    """

    role: str
    result: ModelResult
    start: ModelResult | None
    label: str
    colour: int
    warmed_up: bool
    answers: Mapping[str, Sequence[Evaluated]] = field(default_factory=dict)
    before: Mapping[str, Sequence[Evaluated]] = field(default_factory=dict)

    def change(self, set: str, kind: str) -> Measured | None:
        """Return the mean change since the start on all of a set's prompts, with its interval, if their answers are kept."""
        found = difference(values(self.answers.get(set, ()), kind), values(self.before.get(set, ()), kind))
        return found if found and found.num == self.result.sets[set].num_prompts else None


def models(runs: Sequence[RunView]) -> list[Model]:
    """Return every model of every run, starts first; a start shared by several runs appears once.

    A label carries its run's name if another model of the report has the same label.
    """
    found: list[tuple[str, ModelResult, RunView]] = []
    for run in runs:
        for role, result in run.evaluation.models.items():
            shared = role == "start" and any(
                other == "start" and (known.label, known.sets) == (result.label, result.sets)
                for other, known, _ in found
            )
            if not shared:
                found.append((role, result, run))
    found.sort(key=lambda item: item[0] != "start")
    labels = [result.label for _, result, _ in found]
    rows, colour = [], 0
    for role, result, run in found:
        colour += role != "start"
        completions = {} if role == "start" else run.evaluation.completions
        origin = "" if labels.count(result.label) == 1 else f" ({figures.name(run.name)})"
        rows.append(
            Model(
                role,
                result,
                None if role == "start" else run.before,
                figures.name(result.label) + origin,
                0 if role == "start" else colour,
                role != "start" and _warmed_up(run),
                completions.get(role, {}),
                completions.get("start", {}),
            )
        )
    return rows


def _warmed_up(run: RunView) -> bool:
    located = (stage for name, stage in run.manifest.stages.items() if name.rpartition("/")[2] == "locate")
    return any("training_state_bytes" in stage.counts for stage in located)


def set_names(rows: Sequence[Model]) -> list[str]:
    """Return the evaluation sets of all models, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.result.sets))


def result_tables(rows: Sequence[Model]) -> list[Table]:
    """Return one table per evaluation set: a row per model, accuracies or rewards with intervals, pass@k, mean tokens."""
    found = []
    for name in set_names(rows):
        known = [(row, row.result.sets[name]) for row in rows if name in row.result.sets]
        by_reward = any(result.rewards for _, result in known)
        found.append(_reward_table(name, known) if by_reward else _accuracy_table(name, known))
    return found


def _reward_table(name: str, known: Sequence[tuple[Model, SetResult]]) -> Table:
    kinds = [kind for kind in ("sampled", "greedy") if any(kind in result.rewards for _, result in known)]
    columns = [f"{kind.capitalize()} {what}" for kind in kinds for what in ("wins", "reward", "change")]
    rows = [
        (
            Cell(row.label),
            *(
                cell
                for kind in kinds
                for cell in _reward_cells(result.rewards.get(kind), row.change(name, kind))
            ),
            Cell(figures.decimal(result.mean_tokens, digits=1), value=result.mean_tokens),
        )
        for row, result in known
    ]
    prompts = sorted({result.num_prompts for _, result in known})
    return Table(
        title=figures.name(name),
        columns=("Model", *columns, "Mean tokens"),
        rows=tuple(rows),
        remark=f"{' or '.join(map(figures.count, prompts))} prompts. Wins by reward against the start's answers to "
        f"the same prompts, ties half; {CHANGE}",
    )


def _reward_cells(rewards: Rewards | None, change: Measured | None) -> tuple[Cell, Cell, Cell]:
    if rewards is None:
        return Cell(figures.ABSENT), Cell(figures.ABSENT), Cell(figures.ABSENT)
    return rate(rewards.win_rate), measured(rewards.mean, digits=3), _changed(change, digits=3)


def _accuracy_table(name: str, known: Sequence[tuple[Model, SetResult]]) -> Table:
    sizes = sorted(
        {k for _, result in known for k in result.pass_at if not _is_sampled(result, k)},
        key=figures.as_number,
    )
    lines = []
    for row, result in known:
        base = row.start.sets.get(name) if row.start else None
        lines.append(
            (
                Cell(row.label),
                _accuracy(result.sampled),
                _change(base.sampled if base else None, result.sampled, row.change(name, "sampled")),
                _accuracy(result.greedy),
                *(_share(result.pass_at.get(k)) for k in sizes),
                Cell(figures.decimal(result.mean_tokens, digits=1), value=result.mean_tokens),
            )
        )
    passes = tuple(f"Pass@{k}" for k in sizes)
    return Table(
        title=figures.name(name),
        columns=("Model", "Sampled accuracy", "Change, points", "Greedy accuracy", *passes, "Mean tokens"),
        rows=tuple(lines),
        remark=". ".join(
            (
                _sample_sizes(
                    [result.num_prompts for _, result in known], [result.sampled for _, result in known]
                ),
                *([f"{CHANGE[0].upper()}{CHANGE[1:]}"] if any(row.before for row, _ in known) else []),
                *_overlaps([result.overlap for _, result in known]),
            )
        ),
    )


def _is_sampled(result: SetResult, k: str) -> bool:
    """Return whether pass@k repeats the sampled accuracy, as pass@1 does."""
    return (
        k == "1" and result.sampled is not None and math.isclose(result.pass_at[k], result.sampled.accuracy)
    )


def _sample_sizes(prompts: list[int], sampled: list[Accuracy | None]) -> str:
    completions = {accuracy.num for accuracy in sampled if accuracy}
    texts = [f"{' or '.join(map(figures.count, sorted(set(prompts))))} prompts"]
    if completions:
        texts.append(f"{' or '.join(map(figures.count, sorted(completions)))} sampled completions a model")
    return ", ".join(texts)


def _overlaps(found: list[Overlap | None]) -> list[str]:
    """Return sentences on how many of a set's prompts training has seen, once for models with equal counts."""
    return [
        f"{figures.count(overlap.exact)} of {figures.count(overlap.num)} prompts are also training problems, "
        f"{figures.count(overlap.near)} nearly so"
        for overlap in dict.fromkeys(found)
        if overlap is not None
    ]


def cost_table(rows: Sequence[Model]) -> Table:
    """Return each model's cost: KL to the start, weights trained, time, training state."""
    lines = []
    for row in rows:
        result, kl = row.result, row.result.kl
        interval = (
            ""
            if kl is None or kl.low is None or kl.high is None
            else figures.interval(kl.low, kl.high, digits=4)
        )
        lines.append(
            (
                Cell(row.label),
                Cell(figures.decimal(kl.value if kl else None, digits=4), interval, kl.value if kl else None),
                Cell(figures.count(result.trained_weights), value=result.trained_weights),
                Cell(figures.density(result.density), value=result.density),
                Cell(figures.seconds(result.seconds), value=result.seconds),
                Cell(figures.size(result.training_state_bytes), value=result.training_state_bytes),
            )
        )
    sets = sorted({figures.name(row.result.kl.set) for row in rows if row.result.kl})
    warmed = [row.label for row in rows if row.warmed_up]
    remarks = [f"KL on {', '.join(sets)}"] if sets else []
    if warmed:
        remarks.append(
            f"Training state of {', '.join(warmed)} includes the warm-up, which trains all weights once"
        )
    return Table(
        title="What it took",
        columns=(
            "Model",
            "KL to start, nats a token",
            "Weights trained",
            "Density",
            "Time",
            "Training state",
        ),
        rows=tuple(lines),
        remark=". ".join(remarks),
    )


def stage_table(run: RunView) -> Table:
    """Return the cost and counts of each stage of a run, from its manifest."""
    # The manifest's `report` entry describes an earlier report, so showing it would make each report differ.
    stages = {name: stage for name, stage in run.manifest.stages.items() if name != "report"}
    table = Table(
        title=f"Stages of {figures.name(run.name)}",
        columns=("Stage", "Time", "Peak memory", "Counts", "Device", "Seed", "Commit"),
        rows=tuple(_stage_row(name, stage) for name, stage in stages.items()),
    )
    return _folded(table, first=4, facts=_versions(stages))


def _folded(table: Table, *, first: int, facts: list[str]) -> Table:
    """Return the table without constant columns from `first` on; their values are stated once, before `facts`."""
    constant = [i for i in range(first, len(table.columns)) if len({row[i] for row in table.rows}) == 1]
    once = [(table.columns[i], table.rows[0][i]) for i in constant]
    said = [
        f"{column} {cell.text} {cell.note}".strip() for column, cell in once if cell.text != figures.ABSENT
    ]
    kept = [i for i in range(len(table.columns)) if i not in constant]
    return Table(
        title=table.title,
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        remark=". ".join((*said, *facts)),
    )


def _stage_row(name: str, stage: StageRecord) -> tuple[Cell, ...]:
    counts = ", ".join(_counted(key, value) for key, value in stage.counts.items())
    commit = figures.ABSENT if stage.commit is None else stage.commit[:10]
    return (
        Cell(figures.name(name)),
        Cell(figures.seconds(stage.seconds), value=stage.seconds),
        Cell(figures.size(stage.peak_memory_bytes), value=stage.peak_memory_bytes),
        Cell(figures.printable(counts) or figures.ABSENT),
        Cell(figures.name(stage.device or figures.ABSENT), figures.name(stage.hardware or "")),
        Cell(figures.ABSENT if stage.seed is None else str(stage.seed)),
        Cell(figures.name(commit), "uncommitted changes" if stage.dirty else ""),
    )


def _counted(key: str, value: object) -> str:
    """Return one count in words: "24 steps", "12.7 MB training state", "density 5%"."""
    name = key.removeprefix("num_").replace("_", " ")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name} {value}"
    if key.endswith("_bytes"):
        return f"{figures.size(value)} {name.removesuffix(' bytes')}"
    if key == "density":
        return f"density {figures.density(value)}"
    return f"{figures.count(value) if isinstance(value, int) else figures.significant(value)} {name}"


def _versions(stages: dict[str, StageRecord]) -> list[str]:
    """Return each distinct set of package versions, with its stages if there are several sets."""
    users: dict[str, list[str]] = {}
    for name, stage in stages.items():
        if stage.versions:
            users.setdefault(", ".join(f"{k} {v}" for k, v in stage.versions.items()), []).append(name)
    return [
        figures.printable(text if len(users) == 1 else f"{', '.join(names)}: {text}")
        for text, names in users.items()
    ]


def to_markdown(table: Table) -> str:
    """Return a GitHub table under its title, with numbers to the right and names escaped."""
    names = [escaped(column) for column in table.columns]
    lines = [
        f"### {escaped(table.title)}",
        "",
        f"| {' | '.join(names)} |",
        "| :-- |" + " --: |" * (len(names) - 1),
        *(
            f"| {' | '.join(escaped(f'{cell.text} {cell.note}'.strip()) for cell in row)} |"
            for row in table.rows
        ),
    ]
    return "\n".join([*lines, *(["", escaped(table.remark)] if table.remark else []), ""])


def escaped(text: str) -> str:
    """Return text that GitHub shows literally: no markup, no HTML, no cell or line break. Keys stay as they are."""
    plain = " ".join(printable(figures.printable(text)).split())
    return _TAG.sub("&lt;", _ITEM.sub(r"\1\\", _MARKUP.sub(r"\\\g<0>", plain)))


def rate(found: Rate | None) -> Cell:
    """Return a share with its interval."""
    if found is None:
        return Cell(figures.ABSENT)
    return Cell(figures.percent(found.value), figures.percent_interval(found.low, found.high), found.value)


def measured(found: Rate | None, *, digits: int) -> Cell:
    """Return a mean that is no share, with its interval."""
    if found is None:
        return Cell(figures.ABSENT)
    bounds = figures.interval(found.low, found.high, digits=digits)
    return Cell(figures.decimal(found.value, digits=digits), bounds, found.value)


def _accuracy(found: Accuracy | None) -> Cell:
    return rate(None if found is None else Rate(found.accuracy, found.low, found.high))


def _change(before: Accuracy | None, after: Accuracy | None, paired: Measured | None) -> Cell:
    if before is None or after is None:
        return Cell(figures.ABSENT)
    change = after.accuracy - before.accuracy
    note = figures.interval(100 * paired.low, 100 * paired.high, digits=1) if paired else ""
    return Cell(figures.points(change), note, change)


def _changed(found: Measured | None, *, digits: int) -> Cell:
    cell = measured(found, digits=digits)
    return replace(cell, text=f"+{cell.text}") if found and found.value > 0 else cell


def _share(share: float | None) -> Cell:
    return Cell(figures.percent(share), value=share)
