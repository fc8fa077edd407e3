"""The runs of one report compared in words and figures: each later run with the first, on the same prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from allo.files.changes import Difference, differences, in_short
from allo.files.evaluation import Accuracy, Evaluated, Rate
from allo.report import figures
from allo.report.paired import Prompts, difference, values
from allo.report.run_view import RunView
from allo.report.tables import escaped

CAUTION = (
    "Intervals are over prompts. Each run is one training: another seed may give another difference, which the command "
    "allo compare tests."
)
SAMPLING = ("temperature", "top_p", "max_new_tokens")
_NAMES = {"name", "out", "report.title"}
"""Settings that change nothing of a run but its name or place."""
_MOST_SAID = 5


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side, in sentences from the results to the price."""

    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class _Measure:
    """One figure of both runs; `paired` is their difference over the same prompts, of which there are `num`."""

    name: str
    mine: Rate
    other: Rate
    is_share: bool = True
    paired: Rate | None = None
    num: int = 0

    def shown(self, found: Rate) -> str:
        """Return one run's value; with its interval if there is none of the difference."""
        digits, scale = (1, 100) if self.is_share else (3, 1)
        text = figures.percent(found.value) if self.is_share else figures.decimal(found.value, digits=3)
        if self.paired:
            return text
        return f"{text} {figures.interval(scale * found.low, scale * found.high, digits=digits)}"

    def difference(self) -> str:
        """Return the difference and what it shows."""
        scale, unit = (100, " points") if self.is_share else (1, "")
        digits = 1 if self.is_share else 3
        change = self.paired.value if self.paired else self.mine.value - self.other.value
        size = (
            f"{figures.decimal(scale * abs(change), digits=digits)}{unit} {'more' if change > 0 else 'less'}"
        )
        if self.paired is None:
            apart = self.mine.low > self.other.high or self.mine.high < self.other.low
            return f"{size}; the intervals {'do not overlap' if apart else 'overlap'}"
        bounds = figures.interval(scale * self.paired.low, scale * self.paired.high, digits=digits)
        shown = "so no difference is shown" if self.paired.low <= 0 <= self.paired.high else ""
        verdict = f"contains 0, {shown}" if shown else "does not contain 0"
        return f"{size} {bounds} over the same {figures.count(self.num)} prompts; the interval {verdict}"


def distinct(runs: Sequence[RunView]) -> list[RunView]:
    """Return the runs; those of one name are told apart by the settings in which they differ, otherwise by a number."""
    names = [run.name for run in runs]
    found = []
    for place, run in enumerate(runs):
        alike = [each for each in runs if each.name == run.name]
        number = names[: place + 1].count(run.name)
        apart = _apart(alike) if len(alike) > 1 else []
        label = apart[number - 1] if apart else str(number)
        found.append(replace(run, name=f"{run.name} ({label})") if len(alike) > 1 else run)
    return found


def _apart(runs: Sequence[RunView]) -> list[str]:
    """Return a label for each run, from the fewest settings that tell all of them apart; nothing if none do."""
    keys = dict.fromkeys(key for run in runs for key, *_ in _differing(run, runs[0]))
    columns = {key: [_setting(run, key) for run in runs] for key in keys}
    for chosen in (*combinations(columns, 1), *combinations(columns, 2)):
        each_run = zip(*(columns[key] for key in chosen), strict=True)
        labels = [", ".join(map(" ".join, zip(chosen, each, strict=True))) for each in each_run]
        if len({figures.name(f"{runs[0].name} ({label})") for label in labels}) == len(runs):
            return labels
    return []


def _differing(mine: RunView, other: RunView) -> list[Difference]:
    """Return the settings in which two runs differ, apart from names and places."""
    return [each for each in differences(mine.settings, other.settings) if each[0] not in _NAMES]


def _setting(run: RunView, key: str) -> str:
    value: object = run.settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return in_short(value)


def comparisons(runs: Sequence[RunView]) -> list[Comparison]:
    """Compare each later run with the first."""
    return [
        Comparison(
            f"{figures.name(run.name)} against {figures.name(runs[0].name)}",
            tuple(_sentences(run, runs[0])),
        )
        for run in runs[1:]
    ]


def comparison_lines(runs: Sequence[RunView]) -> list[str]:
    """Return the comparisons as Markdown; nothing for a single run."""
    lines = []
    for each in comparisons(runs):
        lines += [f"### {escaped(each.title)}", "", *(f"- {escaped(text)}" for text in each.sentences), ""]
    return [*lines, escaped(CAUTION), ""] if lines else []


def _sentences(mine: RunView, other: RunView) -> Iterator[str]:
    names = figures.name(mine.name), figures.name(other.name)
    said = [
        text
        for name in mine.after.sets
        if name in other.after.sets and (text := _on_set(name, mine, other, names))
    ]
    said += _on_held_out(mine, other, names)
    yield from said or [
        f"{names[0]} and {names[1]} have no measure in common, so their results are not compared."
    ]
    if price := list(_price(mine, other)):
        yield f"Price of {names[0]} against {names[1]}: {'; '.join(price)}."
    yield from _unlike(mine, other, names)


def _on_set(set: str, mine: RunView, other: RunView, names: tuple[str, str]) -> str:
    """Return the sentence on an evaluation set; "" if the runs share no kind of measure."""
    where, rows = f"On {figures.name(set)}", [_answers(run, set) for run in (mine, other)]
    if all(rows) and _asked(rows[0]) != _asked(rows[1]):
        return f"{where}, {names[0]} and {names[1]} answered different prompts, so they are not compared."
    one, two = mine.after.sets[set], other.after.sets[set]
    same_judge = mine.settings.get("judge") == other.settings.get("judge")
    for kind in ("sampled", "greedy"):
        both = [values(answered, kind) for answered in rows]
        mean, against = (each.sampled if kind == "sampled" else each.greedy for each in (one, two))
        if mean and against:
            measure = _Measure(f"{kind} accuracy", _rate(mean), _rate(against))
        elif kind in one.rewards and kind in two.rewards and same_judge:
            measure = _Measure(
                f"mean reward of {kind} answers",
                one.rewards[kind].mean,
                two.rewards[kind].mean,
                is_share=False,
            )
        else:
            continue
        return f"{where}, {_said(_paired(measure, *both), names)}"
    return ""


def _rate(found: Accuracy) -> Rate:
    return Rate(found.accuracy, found.low, found.high)


def _said(measure: _Measure, names: tuple[str, str]) -> str:
    return (
        f"the {measure.name} of {names[0]} is {measure.shown(measure.mine)} and that of {names[1]} "
        f"{measure.shown(measure.other)}: {measure.difference()}."
    )


def _answers(run: RunView, set: str) -> list[Evaluated]:
    return run.evaluation.completions.get(run.after_role, {}).get(set, [])


def _asked(rows: Sequence[Evaluated]) -> dict[str, object]:
    return {row.prompt_id: row.prompt for row in rows}


def _paired(measure: _Measure, mine: Prompts, other: Prompts) -> _Measure:
    """Return the measure with the mean difference over prompts, if the answers of both are there."""
    found = difference(mine, other)
    return measure if found is None else replace(measure, paired=found, num=found.num)


def _on_held_out(mine: RunView, other: RunView, names: tuple[str, str]) -> Iterator[str]:
    known = _held_out(other)
    for kind, (size, rates) in _held_out(mine).items():
        if kind not in known:
            continue
        if known[kind][0] != size:
            yield f"On held-out {kind}, {names[0]} and {names[1]} were measured on different ones, so they are not compared."
            continue
        both = ((name, rate, known[kind][1][name]) for name, rate in rates.items())
        measures = [_Measure(name, one, two) for name, one, two in both if one and two]
        yield from (f"On held-out {kind}, {_said(measure, names)}" for measure in measures[:1])


def _held_out(run: RunView) -> dict[str, tuple[tuple[int, ...], dict[str, Rate | None]]]:
    """Return, by kind of held-out rows, their numbers and the measures, the most telling first."""
    found: dict[str, tuple[tuple[int, ...], dict[str, Rate | None]]] = {}
    if pairs := run.after.held_out:
        rates = {"reward accuracy": pairs.reward_accuracy, "likelihood accuracy": pairs.likelihood_accuracy}
        found["pairs"] = (pairs.num_pairs, pairs.num_prompts), rates
    if rows := run.after.feedback:
        rates = {"reward AUC": rows.reward_auc, "likelihood AUC": rows.likelihood_auc}
        found["completions"] = (rows.num_good, rows.num_bad, rows.num_prompts), rates
    return found


def _price(mine: RunView, other: RunView) -> Iterator[str]:
    one, two = mine.after, other.after
    if one.density is not None and two.density is not None:
        yield f"{figures.density(one.density)} against {figures.density(two.density)} of the weights trained"
    if one.kl and two.kl and one.kl.set == two.kl.set:
        kls = (figures.decimal(each.kl.value, digits=4) for each in (one, two) if each.kl)
        yield f"KL to the start {' against '.join(kls)} nats a token"
    if one.training_state_bytes is not None and two.training_state_bytes is not None:
        yield f"{figures.size(one.training_state_bytes)} against {figures.size(two.training_state_bytes)} of training state"
    if one.seconds is not None and two.seconds is not None:
        yield f"{figures.seconds(one.seconds)} against {figures.seconds(two.seconds)} of training"


def _unlike(mine: RunView, other: RunView, names: tuple[str, str]) -> Iterator[str]:
    """Yield the settings in which two runs differ, and the reasons, apart from training, for which they may."""
    if (apart := _differing(mine, other)) and mine.settings and other.settings:
        said = [f"{key} {in_short(one)} against {in_short(two)}" for key, one, two in apart[:_MOST_SAID]]
        more = f", and {len(apart) - _MOST_SAID} more" if len(apart) > _MOST_SAID else ""
        yield f"Settings of {names[0]} against {names[1]}: {'; '.join(map(figures.printable, said))}{more}."
    starts = mine.start_hash, other.start_hash
    if all(starts) and starts[0] != starts[1]:
        yield "Their starting models differ, so the difference is not one of training alone."
    settings = [run.settings.get("evaluate") for run in (mine, other)]
    sampled = [
        tuple(each.get(key) for key in SAMPLING) if isinstance(each, dict) else None for each in settings
    ]
    if all(sampled) and sampled[0] != sampled[1]:
        shown = [figures.printable(", ".join(map(str, each))) for each in sampled if each]
        yield (
            f"Their answers were sampled differently ({', '.join(SAMPLING)}: {shown[0]} for {names[0]}, {shown[1]} for "
            f"{names[1]}), so the difference is not one of training alone."
        )
