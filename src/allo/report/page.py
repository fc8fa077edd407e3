"""The page and its Markdown, from runs; pure, so that the same runs give the same bytes."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from allo.files.evaluation import Accuracy, Rewards, SetResult
from allo.report import charts, figures, story, tables
from allo.report.diagnosis import diagnosis_lines, read_run
from allo.report.experts import chosen_among, expert_table
from allo.report.harness import tables_of_runs
from allo.report.judged import win_rate_tables
from allo.report.pairs import held_out_tables
from allo.report.run_view import RunView, TokenCredit

HERE = Path(__file__).parent
COLOURS = 5  # the style sheet's colour classes besides neutral; further models share colours
DEFAULT_EXAMPLES = 6
IN_THE_FOLDER = "In the run's folder:"

# The metrics drawn for each stage: a panel's title, and its lines (metric, label, colour class).
PANELS = (
    ("Loss", (("loss", "", 1),)),
    (
        "Rewards",
        (
            ("rewards/chosen", "chosen", 1),
            ("rewards/rejected", "rejected", 2),
            ("rewards/margins", "margin", 3),
        ),
    ),
    ("Reward accuracy", (("rewards/accuracies", "", 1),)),
)


@dataclass(frozen=True)
class StageCurves:
    """One stage's charts: (title, SVG)."""

    stage: str
    panels: tuple[tuple[str, Markup], ...]


@dataclass(frozen=True)
class Density:
    """One stage's mask as a heat map, and its most selected experts, if it has any."""

    stage: str
    overall: str
    chart: Markup
    experts: tables.Table | None


def render(
    runs: Sequence[RunView], *, title: str | None = None, num_examples: int = DEFAULT_EXAMPLES
) -> tuple[str, str]:
    """Return the report of one or many runs: (HTML, Markdown). The first run is the headline's."""
    assert runs, "a report needs a run"
    runs = story.with_starts(runs)
    rows = tables.models(runs)
    results = (
        tables.result_tables(rows) + held_out_tables(rows) + win_rate_tables(runs) + tables_of_runs(runs)
    )
    cost = tables.cost_table(rows)
    heading = figures.printable(title or " · ".join(run.name for run in runs))
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    html = environment.get_template("page.html.j2").render(
        title=heading,
        style=Markup(style),  # the package's own file, not a run's text
        style_digest=digest,
        headlines=[(figures.name(run.name), figures.name(run.base), story.headline(run)) for run in runs],
        price=story.price(runs[0].after) if len(runs) == 1 else [],  # several: the table compares them
        results=results,
        intervals=_intervals(rows),
        cost=cost,
        runs=[_run_part(run, num_examples) for run in runs],
    )
    return html, _markdown(heading, runs, results, cost)


def _markdown(heading: str, runs: Sequence[RunView], results: list[tables.Table], cost: tables.Table) -> str:
    shown = [*results, cost, *(tables.stage_table(run) for run in runs if run.manifest.stages)]
    sentences = [tables.escaped(story.headline(run)) for run in runs]
    return "\n".join(
        [
            f"## {tables.escaped(heading)}",
            "",
            *(f"{text}\n" for text in sentences),
            *map(tables.to_markdown, shown),
            *diagnosis_lines(runs),
            *(line for run in runs for line in _uses(run, several=len(runs) > 1)),
        ]
    )


def _uses(run: RunView, *, several: bool) -> list[str]:
    """Return the Markdown lines on the use of a run's model."""
    if not run.uses:
        return []
    title = f"Use this model, {tables.escaped(figures.name(run.name))}" if several else "Use this model"
    return [f"### {title}", "", IN_THE_FOLDER, "", *(f"- {text}: `{line}`" for text, line in run.uses), ""]


def _intervals(rows: Sequence[tables.Model]) -> list[tuple[str, Markup]]:
    """Draw a chart per evaluation set: accuracies, or wins against the start, which itself wins half."""
    names = tables.set_names(rows)
    found = [[(row, row.result.sets[name]) for row in rows if name in row.result.sets] for name in names]
    panels = [[_whisker(row, result) for row, result in known] for known in found]
    axes = ["wins" if any(result.rewards for _, result in known) else "accuracy" for known in found]
    span = charts.interval_span(panels)
    return [
        (
            figures.name(name),
            charts.interval_plot(f"{axis} on {figures.name(name)}", panel, span=span, axis=axis),
        )
        for name, panel, axis in zip(names, panels, axes, strict=True)
    ]


def _whisker(row: tables.Model, result: SetResult) -> charts.Whisker:
    if not result.rewards:
        return charts.Whisker(row.label, _colour(row), result.sampled, result.greedy)
    sampled, greedy = (_won(row, result.rewards.get(kind)) for kind in ("sampled", "greedy"))
    return charts.Whisker(row.label, _colour(row), sampled, greedy)


def _won(row: tables.Model, rewards: Rewards | None) -> Accuracy | None:
    if rewards is None:
        return None
    if row.role == "start":
        return Accuracy(0.5, 0.5, 0.5, rewards.mean.num)
    won = rewards.win_rate
    return Accuracy(won.value, won.low, won.high, won.num) if won else None


def _colour(row: tables.Model) -> int:
    return 0 if row.colour == 0 else (row.colour - 1) % COLOURS + 1


def _run_part(run: RunView, num_examples: int) -> dict[str, object]:
    credit = run.credit or TokenCredit((), 0, 0)
    return {
        "name": figures.name(run.name),
        "readings": [(figures.name(each.stage), each.sentences) for each in read_run(run)],
        "curves": _curves(run),
        "densities": _densities(run),
        "legend": charts.heat_legend(_most(run)),
        "credit": run.credit,
        "samples": [
            (
                story.prompt_text(item.prompt),
                story.tokens(item),
                story.token_map(item, credit.scorer or "scores"),
            )
            for item in credit.samples
        ],
        "calibration": _calibration(credit),
        "weighted": figures.percent(credit.num_weighted / max(1, credit.num_tokens)),
        "changes": story.changes(run),
        "examples": story.examples(run, most=num_examples),
        "before": figures.name(run.before.label if run.before else ""),
        "after": figures.name(run.after.label),
        "stages": tables.stage_table(run) if run.manifest.stages else None,
        "recipe": figures.printable(run.recipe) if run.recipe else "",
        "allo": figures.name(run.manifest.allo),
        "uses": run.uses,
        "in_the_folder": IN_THE_FOLDER,
    }


def _curves(run: RunView) -> list[StageCurves]:
    found = []
    for stage, steps in run.curves.items():
        panels = []
        for title, lines in PANELS:
            series = [
                charts.Series(
                    label, colour, [(step["step"], step[metric]) for step in steps if metric in step]
                )
                for metric, label, colour in lines
            ]
            series = [line for line in series if line.points]
            if series:
                panels.append((title, charts.line_chart(f"{title}, {stage}", series)))
        if panels:
            found.append(StageCurves(figures.name(stage), tuple(panels)))
    return found


def _calibration(credit: TokenCredit) -> list[tuple[str, str, Markup]]:
    """Return a chart per scorer, if the truth is known: (scorer, its error, SVG)."""
    found = []
    for each in credit.calibration:
        name = figures.name(each.scorer or "scores")
        error = f"off by {figures.decimal(each.error, digits=2)} on average"
        found.append((name, error, charts.reliability_plot(f"calibration of {name}", each.bins)))
    return found


def _most(run: RunView) -> float:
    return max(
        (row.selected / row.total for mask in run.masks.values() for row in mask if row.total), default=0.0
    )


def _densities(run: RunView) -> list[Density]:
    found = []
    for stage, mask in run.masks.items():
        selected, total = sum(row.selected for row in mask), sum(row.total for row in mask)
        overall = f"{figures.density(selected / max(1, total))} of all weights: {figures.count(selected)} of {figures.count(total)}"
        overall += chosen_among(run.among.get(stage, {}))
        chart = charts.heat_map(
            f"density of the {stage} mask by layer and kind of tensor", mask, most=_most(run)
        )
        experts = expert_table(run.experts.get(stage, ()), selected=selected)
        found.append(Density(figures.name(stage), overall, chart, experts))
    return found
