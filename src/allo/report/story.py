"""The report's sentences and the examples that it picks, by rules that a reader can check."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from allo.report import figures
from allo.report.run_view import Accuracy, Evaluated, ModelResult, PromptText, RunView, TokenSample

SHADES = 8  # a weight is drawn in one of this many shades of the largest weight of its completion
LONGEST = 2000  # characters shown of a prompt or completion


@dataclass(frozen=True)
class Token:
    """One token as drawn: its text, a shade in 0..SHADES, and its figures as tooltip."""

    text: str
    shade: int
    tooltip: str


@dataclass(frozen=True)
class MapRow:
    """A completion as one scorer sees it, or as it truly is."""

    scorer: str
    tokens: list[Token]


@dataclass(frozen=True)
class Example:
    """One prompt with the completions before and after alignment."""

    set: str
    outcome: str
    prompt: str
    answer: str
    before: str
    before_correct: bool
    after: str
    after_correct: bool


@dataclass(frozen=True)
class Change:
    """How many prompts of a set went from right or wrong to right or wrong, greedily decoded."""

    set: str
    fixed: int
    broken: int
    both_right: int
    both_wrong: int


def with_starts(runs: Sequence[RunView]) -> list[RunView]:
    """The runs, each without a start of its own given that of a run whose start has the same files."""
    known = {run.start_hash: run.before for run in reversed(runs) if run.start_hash and run.before}
    return [replace(run, borrowed_start=known.get(run.start_hash or "")) for run in runs]


def headline(run: RunView) -> str:
    """The run's result in one sentence: the first evaluation set, before and after, and the price."""
    after, before = run.after, run.before
    if not after.sets:
        return f"{figures.name(after.label)} was evaluated on no set."
    name = next(iter(after.sets))
    result = after.sets[name]
    kind, accuracy = ("sampled", result.sampled) if result.sampled else ("greedy", result.greedy)
    if accuracy is None:
        return f"{figures.name(after.label)} has no measured accuracy on {figures.name(name)}."
    base = before.sets.get(name) if before and before is not after else None
    known = None if base is None else (base.sampled if kind == "sampled" else base.greedy)
    reached = f"{_spoken(accuracy)} ({figures.name(after.label)})"
    where = f"On {figures.name(name)}, {kind} accuracy"
    trained = (
        "" if after.density is None else f" {figures.density(after.density)} of the weights were trained."
    )
    if known is None or before is None:
        return f"{where} is {reached}.{trained}"
    left = f"{_spoken(known)} ({figures.name(before.label)})"
    change = figures.points(accuracy.accuracy - known.accuracy)
    apart = accuracy.low > known.high or accuracy.high < known.low
    overlap = "do not overlap" if apart else "overlap"
    return f"{where} went from {left} to {reached}, {change} points; the intervals {overlap}.{trained}"


def _spoken(accuracy: Accuracy) -> str:
    return f"{figures.percent(accuracy.accuracy)} {figures.percent_interval(accuracy.low, accuracy.high)}"


def price(model: ModelResult) -> list[tuple[str, str]]:
    """The headline's figures: (value, what it is), those that are known."""
    known = [
        (
            model.density,
            figures.density(model.density),
            f"of the weights trained ({figures.count(model.trained_weights)})",
        ),
        (
            model.kl,
            figures.decimal(model.kl.value if model.kl else None, digits=4),
            "nats a token from the start (KL)",
        ),
        (model.training_state_bytes, figures.size(model.training_state_bytes), "of training state"),
        (model.seconds, figures.seconds(model.seconds), "of training"),
    ]
    return [(text, meaning) for value, text, meaning in known if value is not None]


def changes(run: RunView) -> list[Change]:
    """What greedy decoding gained and lost, set by set."""
    found = []
    for name, pairs in _paired(run).items():
        outcomes = [(_right(before), _right(after)) for before, after in pairs]
        if outcomes:
            found.append(
                Change(
                    figures.name(name),
                    fixed=outcomes.count((False, True)),
                    broken=outcomes.count((True, False)),
                    both_right=outcomes.count((True, True)),
                    both_wrong=outcomes.count((False, False)),
                )
            )
    return found


def examples(run: RunView, *, most: int) -> list[Example]:
    """The first prompts of each outcome in turn (fixed, broken, still wrong) until `most` are found.

    Losses stand beside gains, so the choice does not flatter the model.
    """
    kinds = {"fixed": (False, True), "broken": (True, False), "still wrong": (False, False)}
    queues: list[list[Example]] = []
    for outcome, wanted in kinds.items():
        queues.append(
            [
                _example(name, outcome, before, after)
                for name, pairs in _paired(run).items()
                for before, after in pairs
                if (_right(before), _right(after)) == wanted
            ][:most]
        )
    turns = [queue[turn] for turn in range(most) for queue in queues if turn < len(queue)]
    return sorted(turns[:most], key=lambda example: list(kinds).index(example.outcome))


def _paired(run: RunView) -> dict[str, list[tuple[Evaluated, Evaluated]]]:
    completions = run.evaluation.completions
    start, end = completions.get("start", {}), completions.get(run.after_role, {})
    if run.after_role == "start":
        return {}
    pairs: dict[str, list[tuple[Evaluated, Evaluated]]] = {}
    for name in start:
        after = {item.prompt_id: item for item in end.get(name, [])}
        both = [(item, after[item.prompt_id]) for item in start[name] if item.prompt_id in after]
        pairs[name] = [(a, b) for a, b in both if _right(a) is not None and _right(b) is not None]
    return pairs


def _right(item: Evaluated) -> bool | None:
    return item.greedy.correct if item.greedy else None


def _example(name: str, outcome: str, before: Evaluated, after: Evaluated) -> Example:
    assert before.greedy is not None and after.greedy is not None
    return Example(
        set=figures.name(name),
        outcome=outcome,
        prompt=prompt_text(before.prompt),
        answer=figures.printable(before.answer or "", limit=LONGEST),
        before=figures.printable(before.greedy.text.strip(), limit=LONGEST),
        before_correct=bool(before.greedy.correct),
        after=figures.printable(after.greedy.text.strip(), limit=LONGEST),
        after_correct=bool(after.greedy.correct),
    )


def prompt_text(prompt: PromptText | None) -> str:
    """A prompt as one text; chat turns each begin with their role."""
    if prompt is None or isinstance(prompt, str):
        text = prompt or ""
    else:
        text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    return figures.printable(text.strip(), limit=LONGEST)


def tokens(sample: TokenSample) -> list[Token]:
    """A completion's tokens, shaded by the size of their weight."""
    largest = max((abs(weight) for weight in sample.weights if weight == weight), default=0.0)
    drawn = []
    for text, score, weight in zip(sample.tokens, sample.scores, sample.weights, strict=True):
        share = abs(weight) / largest if largest > 0 and weight == weight else 0.0
        shade = max(1, round(SHADES * share)) if share > 0 else 0
        drawn.append(Token(_token_text(text), shade, f"score {score:.3f} · weight {weight:.3g}"))
    return drawn


def token_map(sample: TokenSample, scorer: str) -> list[MapRow]:
    """The same tokens once a scorer, shaded by its probability that they are wrong; none where it stands alone.

    The truth comes first where it is known.
    """
    scores = {scorer: sample.scores} | sample.beside
    rows = [MapRow(figures.name(name), _by_score(sample.tokens, own)) for name, own in scores.items()]
    if sample.wrong is not None:
        truth = [
            Token(_token_text(t), SHADES * w, "") for t, w in zip(sample.tokens, sample.wrong, strict=True)
        ]
        rows.insert(0, MapRow("truth", truth))
    return rows if len(rows) > 1 else []


def _by_score(texts: list[str], scores: list[float]) -> list[Token]:
    shades = [round(SHADES * (1 - score)) if score == score else 0 for score in scores]
    return [
        Token(_token_text(text), shade, f"score {score:.3f}")
        for text, shade, score in zip(texts, shades, scores, strict=True)
    ]


def _token_text(text: str) -> str:
    return figures.printable(text, limit=LONGEST).replace("\n", "⏎\n") or "∅"
