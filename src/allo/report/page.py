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
from allo.report.compared import CAUTION, comparison_lines, comparisons, distinct
from allo.report.densities import densest, densities
from allo.report.diagnosis import diagnosis_lines, read_run
from allo.report.harness import tables_of_runs
from allo.report.judged import win_rate_tables
from allo.report.likelihood import likelihood_tables
from allo.report.pairs import held_out_tables
from allo.report.run_view import RunView, TokenCredit

HERE = Path(__file__).parent
COLOURS = 5  # the style sheet's colour classes besides neutral; further models share colours
DEFAULT_EXAMPLES = 6
IN_THE_FOLDER = "In the run's folder:"

# The metrics drawn for each stage: a panel's title, its lines (metric, label, colour class), and whether they are shares.
PANELS = (
    ("Loss", (("loss", "", 1),), False),
    (
        "Rewards",
        (
            ("rewards/chosen", "chosen", 1),
            ("rewards/rejected", "rejected", 2),
            ("rewards/margins", "margin", 3),
        ),
        False,
    ),
    ("Reward accuracy", (("rewards/accuracies", "", 1),), True),
    ("Marked tokens, change in nats", (("logratios/forgotten", "", 2),), False),
    ("Probability of marked tokens", (("probabilities/forgotten", "", 2),), True),
)
# A metric that is not drawn beside another, which measures the same without the differences between batches.
LESS_THAN = {"probabilities/forgotten": "logratios/forgotten"}


@dataclass(frozen=True)
class StageCurves:
    """One stage's charts: (title, SVG)."""

    stage: str
    panels: tuple[tuple[str, Markup], ...]


def render(
    runs: Sequence[RunView], *, title: str | None = None, num_examples: int = DEFAULT_EXAMPLES
) -> tuple[str, str]:
    """Return the report of one or many runs: (HTML, Markdown). The first run is the headline's."""
    assert runs, "a report needs a run"
    runs = distinct(story.with_starts(runs))
    rows = tables.models(runs)
    results = (
        tables.result_tables(rows) + held_out_tables(rows) + win_rate_tables(runs) + tables_of_runs(runs)
    )
    cost, changed = tables.cost_table(rows), likelihood_tables(runs)
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
        comparisons=comparisons(runs),
        caution=CAUTION,
        results=results,
        intervals=_intervals(rows),
        cost=cost,
        changed=changed,
        runs=[_run_part(run, num_examples) for run in runs],
        toc=[],  # filled by the template's headings
    )
    return html, _markdown(heading, runs, [*results, cost, *changed])


def _markdown(heading: str, runs: Sequence[RunView], found: list[tables.Table]) -> str:
    shown = [*found, *(tables.stage_table(run) for run in runs if run.manifest.stages)]
    sentences = [tables.escaped(story.headline(run)) for run in runs]
    return "\n".join(
        [
            f"## {tables.escaped(heading)}",
            "",
            *(f"{text}\n" for text in sentences),
            *comparison_lines(runs),
            *diagnosis_lines(runs),
            *map(tables.to_markdown, shown),
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
        "readings": [
            (
                figures.name(each.stage),
                [found.diagnosis for found in each.findings],
                each.sentences,
                [(found.diagnosis, found.text) for found in each.findings[1:]],
            )
            for each in read_run(run)
        ],
        "curves": _curves(run),
        "densities": densities(run),
        "legend": charts.heat_legend(densest(run)),
        "credit": run.credit,
        "samples": [
            (
                story.prompt_text(item.prompt),
                story.tokens(item),
                story.token_map(item, credit.scorer or "scores"),
                story.all_tokens(item, credit.scorer or "score"),
            )
            for item in credit.samples
        ],
        "calibration": _calibration(credit),
        "bins": _bins(credit),
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
        for title, lines, is_share in PANELS:
            series = [
                charts.Series(
                    label,
                    colour,
                    [
                        (step["step"], step[metric])
                        for step in steps
                        if metric in step and LESS_THAN.get(metric) not in step
                    ],
                )
                for metric, label, colour in lines
            ]
            series = [line for line in series if line.points]
            if series:
                panels.append((title, charts.line_chart(f"{title}, {stage}", series, is_share=is_share)))
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


def _bins(credit: TokenCredit) -> tables.Table:
    """Return the calibration charts' dots as a table."""
    rows = tuple(
        (
            tables.Cell(figures.name(each.scorer or "scores")),
            tables.Cell(figures.decimal(bin.predicted, digits=3), value=bin.predicted),
            tables.Cell(figures.percent(bin.observed), value=bin.observed),
            tables.Cell(figures.count(bin.num), value=bin.num),
        )
        for each in credit.calibration
        for bin in each.bins
    )
    return tables.Table("Score and truth", ("Scorer", "Mean score", "Truly aligned", "Tokens"), rows)
