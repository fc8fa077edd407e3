"""The report's page for every reader: contents that lead somewhere, figures in words, colours with contrast."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from allo.files.evaluation import Accuracy, Evaluation, ModelResult, SetResult
from allo.report import axes, charts, page
from allo.report.page import render
from allo.report.run_view import Bin, Manifest, RunView, TokenCredit, TokenSample
from allo.weights.param_mask import MaskRow
from report_setup import Page

RECIPE = {"forget": {"training": {}}, "improve": {"loss": "dpo", "beta": 0.5, "training": {}}}
STEPS = [
    {
        "step": step, "loss": 0.69 - step / 50, "rewards/chosen": step / 10, "rewards/rejected": -step / 10,
        "rewards/margins": step / 5, "rewards/accuracies": 0.9, "logps/chosen": -10 + step / 5,
    }
    for step in range(6)
]  # fmt: skip
WORDS = TokenSample(
    "w", "Why?", ["So", " <b>it", " is"], [0.1, 0.25, 0.9], [1.0, 0.5, 0.0], {"other": [0.5] * 3}
)
USES = (("the model", "./model"), ("serve with vLLM", "vllm serve ./model"))


def run_of(name: str = "mine") -> RunView:
    right = Accuracy(0.5, 0.4, 0.6, 40)
    models = {key: ModelResult(key, {"test": SetResult(10, sampled=right)}) for key in ("start", "aligned")}
    return RunView(
        name,
        Evaluation(1, models),
        Manifest(1, name),
        curves={"improve": STEPS},
        masks={"improve": (MaskRow("0", "q_proj", 3, 12), MaskRow("-", "norm", 0, 4))},
        credit=TokenCredit((WORDS,), 3, 2, "implicit"),
        recipe="name: mine",
        settings=RECIPE,
        uses=USES,
    )


RUNS = {"one": [run_of()], "two": [run_of("dpo"), run_of("allo")], "of one name": [run_of(), run_of()]}
runs_of = pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)


@runs_of
def test_contents_name_every_section_once_and_lead_to_it(runs: list[RunView]) -> None:
    html, _ = render(runs)
    tags = Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links == [f"#{each}" for each in ids]
    sections = re.findall(r'<(h\d) id="([^"]+)" class="(?:head|run)">(.+?)</\1>', html)
    assert [each for _, each, _ in sections] == ids
    for _, each, text in sections:
        assert f'<a href="#{each}">{text}</a>' in html


@runs_of
def test_the_diagnosis_stands_before_the_results_and_names_its_stages(runs: list[RunView]) -> None:
    html, markdown = render(runs)
    for text in (html.split("<main>")[1], markdown):
        assert 0 < text.index("Diagnosis") < text.index("40 sampled completions")
    assert html.count('<li class="fault"><b>improve</b>') + html.count(
        '<li class="fine"><b>improve</b>'
    ) == len(runs)


def test_headings_descend_by_one_level_at_a_time() -> None:
    for runs in RUNS.values():
        levels = [int(tag[1]) for tag, _ in Page(render(runs)[0]).tags if re.fullmatch(r"h\d", tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


@runs_of
def test_nothing_is_loaded_and_nothing_needs_a_script(runs: list[RunView]) -> None:
    html, _ = render(runs)
    assert "://" not in html and "url(" not in html and "@import" not in html and "<script" not in html


def test_every_figure_says_its_values_in_words() -> None:
    bins = (Bin(0.25, 0.5, 30), Bin(0.75, 1.0, 10))
    shown = {
        "line": charts.line_chart("Loss", [charts.Series("", 1, [(1, 0.7), (2, 0.9), (4, 0.4)])]),
        "interval": charts.interval_plot(
            "accuracy", [charts.Whisker("allo", 1, Accuracy(0.5, 0.4, 0.6, 9), None)], span=1
        ),
        "reliability": charts.reliability_plot("calibration", bins),
        "map": charts.heat_map("density, 5%", [MaskRow("0", "q_proj", 3, 12)], most=1.0),
    }
    said = {}
    for kind, chart in shown.items():
        label = next(attributes["aria-label"] for tag, attributes in Page(chart).tags if tag == "svg")
        said[kind] = (label or "").replace("\u00a0", " ")
    assert said["line"] == "Loss: 0.7 at step 1, 0.4 at step 4, lowest 0.4, highest 0.9"
    assert said["interval"] == "accuracy: allo, sampled: 50.0% [40.0, 60.0]"
    assert (
        said["reliability"] == "calibration: score 0.25: 50.0% of 30 tokens; score 0.75: 100.0% of 10 tokens"
    )
    assert said["map"] == "density, 5%"
    assert '<td data-label="q_proj"><span class="cell">25%</span></td>' in render([run_of()])[0]  # its table


def test_figures_of_tokens_are_in_the_text_and_shown_by_touch() -> None:
    html, _ = render([run_of()])
    assert "title=" not in html  # a tooltip needs a pointer
    listed = html.split('<ol class="scores">')[1].split("</ol>")[0]
    for figure in ("weight 1 · implicit 0.100 · other 0.500", "weight 0.5 · implicit 0.250 · other 0.500"):
        assert figure in listed
    assert listed.count("<li>") == len(WORDS.tokens) and "&lt;b&gt;it" in listed
    # A tap gives the focus to a token; Tab passes it by and reaches the list instead.
    drawn = [attributes for _, attributes in Page(html).tags if "data-note" in attributes]
    assert len(drawn) == 3 * len(WORDS.tokens)  # by weight, and by each of two scorers
    assert {attributes["tabindex"] for attributes in drawn} == {"-1"}
    assert "<summary>Scores of the 3 tokens</summary>" in html
    style = (Path(page.__file__).parent / "page.css").read_text()
    assert (
        ".t[data-note]:focus::after" in style and ":focus-visible" in style and "outline: none" not in style
    )


def test_the_page_says_where_the_model_is_and_every_command() -> None:
    html, markdown = render([run_of()])
    for purpose, command in USES:
        assert f"<dt>{purpose}</dt><dd><code>{command}</code></dd>" in html
        assert f"- {purpose}: `{command}`" in markdown


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([1], [1]), ([1, 2], [1, 2]), ([0, 1, 2, 3], [0, 1, 2, 3]), (range(1, 22), [5, 10, 15, 20]), ([7, 8], [7, 8]),
     ([100], [100]), ([0], [0]), (range(10, 3001, 10), [1000, 2000, 3000])],
)  # fmt: skip
def test_ticks_of_steps_are_whole_and_steps_of_the_run(steps: list[int], expected: list[int]) -> None:
    assert axes.whole_ticks(min(steps), max(steps), most=5) == expected
    chart = charts.line_chart("x", [charts.Series("", 1, [(step, 0.5) for step in steps])])
    labels = re.findall(r'class="quiet middle" x="[^"]*" y="154">([^<]*)<', chart)
    assert labels == [f"{each:,}" for each in expected]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.541, 0.693), (-0.29, 0.336), (0.6912, 0.69123), (3e-7, 9e-7), (-5e7, 2e8)]
)
def test_ticks_of_values_are_round_differ_and_enclose_them(low: float, high: float) -> None:
    marks = axes.enclosing_ticks(low, high, most=4)
    labels = axes.tick_labels(marks)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-5 * step and marks[-1] >= high - 1e-5 * step and 2 <= len(marks) <= 7
    assert len(set(labels)) == len(labels)
    digits = f"{step:.6e}".split("e")[0].rstrip("0").rstrip(".")
    assert digits in ("1", "2", "5")
    for mark, label in zip(marks, labels, strict=True):  # a label is the tick, not a rounded neighbour
        assert float(label.replace("−", "-").replace(",", "")) == pytest.approx(mark, abs=1e-6 * step)


def test_marked_tokens_are_drawn_by_their_change_or_else_by_their_probability() -> None:
    change, level = "Marked tokens, change in nats", "Probability of marked tokens"
    for more, drawn in (({"logratios/forgotten": -0.1}, change), ({}, level)):
        steps = [{"step": step, "loss": 0.5, "probabilities/forgotten": 0.2, **more} for step in range(5)]
        html, _ = render([replace(run_of(), curves={"forget": steps})])
        assert [title for title in (change, level) if f"<figcaption>{title}<" in html] == [drawn]


def test_shares_have_no_ticks_beyond_0_and_1() -> None:
    for value in (0.0, 0.97, 1.0):
        chart = charts.line_chart("x", [charts.Series("", 1, [(1, value), (2, value)])], is_share=True)
        ticks = [
            float(text.replace("−", "-")) for text in re.findall(r'class="quiet right"[^>]*>([^<]*)<', chart)
        ]
        assert len(ticks) >= 2 and 0 <= min(ticks) <= value <= max(ticks) <= 1


def schemes() -> dict[str, dict[str, str]]:
    """Return the style sheet's variables in the light and in the dark scheme."""
    style = (Path(page.__file__).parent / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    read = [dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in (light, dark)]
    return {"light": read[0], "dark": read[0] | read[1]}


def rgb(colour: str) -> tuple[float, ...]:
    if colour.startswith("#"):
        return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return tuple(float(part) / 255 for part in colour.split(","))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the contrast ratio of WCAG 2.2."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    colours = {name: rgb(value) for name, value in schemes()[scheme].items() if re.match(r"#|\d+, ", value)}
    for ground in ("page", "panel"):
        texts = ("text", "quiet", "right", "wrong")
        for name in texts:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("c0", "c1", "c2", "c3", "c4", "c5"):  # also the texts at lines' ends
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    assert contrast(colours["c1"], colours["panel"]) >= 3  # the focus
    style = (Path(page.__file__).parent / "page.css").read_text()
    opacities = [float(each) for each in re.findall(r"rgba\(var\(--mark\), ([\d.]+)\)", style)]
    assert len(opacities) == 8
    for opacity in opacities:
        marked = tuple(
            opacity * mark + (1 - opacity) * ground
            for mark, ground in zip(colours["mark"], colours["panel"], strict=True)
        )
        assert contrast(colours["text"], marked) >= 4.5, opacity


def test_names_of_runs_are_escaped_in_the_contents_and_headings() -> None:
    runs = [replace(run, name="<i>x</i>") for run in RUNS["two"]]
    html, markdown = render(runs)
    assert "<i>" not in html + markdown
