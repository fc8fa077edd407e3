"""The report's sentences and examples, chosen by rules that a reader can check."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from allo.files.evaluation import (
    Accuracy,
    Answer,
    Evaluated,
    HeldOut,
    HeldOutFeedback,
    ModelResult,
    PromptText,
    Rate,
    SetResult,
)
from allo.report import figures
from allo.report.run_view import RunView, TokenSample

SHADES = 8  # shades of a weight, relative to its completion's largest weight
OUTCOMES = ("fixed", "broken", "still wrong", "higher reward", "lower reward")  # of examples, as shown
LONGEST = 2000  # characters shown of a prompt or completion


@dataclass(frozen=True)
class Token:
    """One token as drawn: its text, a shade in 0..SHADES, and its figures in words."""

    text: str
    shade: int
    note: str


@dataclass(frozen=True)
class MapRow:
    """A completion as one scorer sees it, or as it truly is."""

    scorer: str
    tokens: list[Token]


@dataclass(frozen=True)
class Example:
    """One prompt with its completions before and after alignment, each with its verdict in words.

    A right completion is good; if none is right, the one with the higher reward is.
    """

    set: str
    outcome: str
    prompt: str
    answer: str
    before: str
    before_mark: str
    before_good: bool
    after: str
    after_mark: str
    after_good: bool


@dataclass(frozen=True)
class Change:
    """The numbers of a set's prompts that became or stayed right or wrong, greedily decoded."""

    set: str
    fixed: int
    broken: int
    both_right: int
    both_wrong: int


def with_starts(runs: Sequence[RunView]) -> list[RunView]:
    """Return the runs; a run without a start gets that of a run whose start has the same files."""
    known = {run.start_hash: run.before for run in reversed(runs) if run.start_hash and run.before}
    return [replace(run, borrowed_start=known.get(run.start_hash or "")) for run in runs]


def headline(run: RunView) -> str:
    """Return the run's result in one sentence: the first evaluation set, before and after, and the price."""
    after, before = run.after, run.before
    if after.held_out and not after.sets:
        return _on_pairs(after.held_out, before) + _trained(after)
    if after.feedback and not after.sets:
        return _on_feedback(after.feedback, before) + _trained(after)
    if not after.sets:
        return f"{figures.name(after.label)} was evaluated on no set."
    name = next(iter(after.sets))
    result = after.sets[name]
    if result.rewards:
        return _rewarded(name, result, after, before) + _trained(after)
    kind, accuracy = ("sampled", result.sampled) if result.sampled else ("greedy", result.greedy)
    if accuracy is None:
        return f"{figures.name(after.label)} has no measured accuracy on {figures.name(name)}."
    base = before.sets.get(name) if before and before is not after else None
    known = None if base is None else (base.sampled if kind == "sampled" else base.greedy)
    reached = f"{_spoken(accuracy)} ({figures.name(after.label)})"
    where = f"On {figures.name(name)}, {kind} accuracy"
    trained = _trained(after)
    if known is None or before is None:
        return f"{where} is {reached}.{trained}"
    left = f"{_spoken(known)} ({figures.name(before.label)})"
    change = figures.points(accuracy.accuracy - known.accuracy)
    apart = accuracy.low > known.high or accuracy.high < known.low
    overlap = "do not overlap" if apart else "overlap"
    return f"{where} went from {left} to {reached}, {change} points; the intervals {overlap}.{trained}"


def _on_pairs(found: HeldOut, before: ModelResult | None) -> str:
    """Return the headline's sentence for held-out pairs."""
    likelier = f"the chosen answer is the likelier one in {_share(found.likelihood_accuracy)}"
    if before and before.held_out and before.held_out is not found:
        likelier += f", at the start in {_share(before.held_out.likelihood_accuracy)}"
    rewarded = f"reward accuracy is {_share(found.reward_accuracy)}; " if found.reward_accuracy else ""
    return f"On {figures.count(found.num_pairs)} held-out pairs, {rewarded}{likelier}."


def _on_feedback(found: HeldOutFeedback, before: ModelResult | None) -> str:
    """Return the headline's sentence for held-out labelled completions."""
    where = (
        f"On {figures.count(found.num_good)} good and {figures.count(found.num_bad)} bad held-out completions"
    )
    if found.likelihood_auc is None:
        return f"{where} nothing is compared, since all have one label."
    rewarded = (
        f"has a higher reward than a bad one in {_share(found.reward_auc)} and " if found.reward_auc else ""
    )
    likelier = f"is the likelier one, by its tokens' mean, in {_share(found.likelihood_auc)}"
    known = before.feedback.likelihood_auc if before and before.feedback else None
    if known is not None and before is not None and before.feedback is not found:
        likelier += f", at the start in {_share(known)}"
    return f"{where}, a good one {rewarded}{likelier} of all comparisons."


def _share(found: Rate) -> str:
    return f"{figures.percent(found.value)} {figures.percent_interval(found.low, found.high)}"


def _trained(model: ModelResult) -> str:
    return "" if model.density is None else f" {figures.density(model.density)} of the weights were trained."


def _rewarded(name: str, result: SetResult, after: ModelResult, before: ModelResult | None) -> str:
    """Return the headline's sentence for a set that rewards measured."""
    kind = "sampled" if "sampled" in result.rewards else "greedy"
    rewards = result.rewards[kind]
    where, won = f"On {figures.name(name)}, {kind} answers of {figures.name(after.label)}", rewards.win_rate
    reward = figures.decimal(rewards.mean.value, digits=3)
    if won is None or before is None:
        return f"{where} have a mean reward of {reward}."
    share = f"{figures.percent(won.value)} {figures.percent_interval(won.low, won.high)}"
    known = before.sets[name].rewards.get(kind) if name in before.sets else None
    changed = f", mean reward {figures.decimal(known.mean.value, digits=3)} to {reward}" if known else ""
    half = "contains" if won.low <= 0.5 <= won.high else "does not contain"
    return (
        f"{where} beat those of {figures.name(before.label)} on {share} by their rewards{changed}; "
        f"the interval {half} one half."
    )


def _spoken(accuracy: Accuracy) -> str:
    return _share(Rate(accuracy.accuracy, accuracy.low, accuracy.high))


def price(model: ModelResult) -> list[tuple[str, str]]:
    """Return the headline's known figures: (value, meaning)."""
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
    """Return the gains and losses of greedy decoding, set by set."""
    found = []
    for name, pairs in _paired(run).items():
        outcomes = [(_right(before), _right(after)) for before, after in pairs if _right(before) is not None]
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
    """Return the first prompts of each outcome in turn until `most` are found.

    Problems that got worse appear beside those that improved, so the choice does not flatter the model.
    """
    queues: dict[str, list[Example]] = {outcome: [] for outcome in OUTCOMES}
    for name, pairs in _paired(run).items():
        for before, after in pairs:
            outcome = _outcome(before, after)
            if outcome in queues:
                queues[outcome].append(_example(name, outcome, before, after))
    turns = [queue[turn] for turn in range(most) for queue in queues.values() if turn < len(queue)]
    return sorted(turns[:most], key=lambda example: OUTCOMES.index(example.outcome))


def _outcome(before: Evaluated, after: Evaluated) -> str | None:
    """Return the outcome of a prompt's greedy answer if it is worth showing, otherwise None."""
    assert before.greedy is not None and after.greedy is not None
    if before.greedy.reward is not None and after.greedy.reward is not None:
        change = after.greedy.reward - before.greedy.reward
        return "higher reward" if change > 0 else "lower reward" if change < 0 else None
    kinds = {(False, True): "fixed", (True, False): "broken", (False, False): "still wrong"}
    return kinds.get((bool(before.greedy.correct), bool(after.greedy.correct)))


def _paired(run: RunView) -> dict[str, list[tuple[Evaluated, Evaluated]]]:
    completions = run.evaluation.completions
    start, end = completions.get("start", {}), completions.get(run.after_role, {})
    if run.after_role == "start":
        return {}
    pairs: dict[str, list[tuple[Evaluated, Evaluated]]] = {}
    for name in start:
        after = {item.prompt_id: item for item in end.get(name, [])}
        both = [(item, after[item.prompt_id]) for item in start[name] if item.prompt_id in after]
        pairs[name] = [(a, b) for a, b in both if _is_judged(a) and _is_judged(b)]
    return pairs


def _is_judged(item: Evaluated) -> bool:
    return item.greedy is not None and (item.greedy.correct is not None or item.greedy.reward is not None)


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
        before_mark=_mark(before.greedy),
        before_good=bool(before.greedy.correct) or outcome == "lower reward",
        after=figures.printable(after.greedy.text.strip(), limit=LONGEST),
        after_mark=_mark(after.greedy),
        after_good=bool(after.greedy.correct) or outcome == "higher reward",
    )


def _mark(answer: Answer) -> str:
    if answer.reward is not None:
        return f"reward {figures.decimal(answer.reward, digits=3)}"
    return "✓ right" if answer.correct else "✗ wrong"


def prompt_text(prompt: PromptText | None) -> str:
    """Return a prompt as one text; each chat turn begins with its role."""
    if prompt is None or isinstance(prompt, str):
        text = prompt or ""
    else:
        text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    return figures.printable(text.strip(), limit=LONGEST)


def tokens(sample: TokenSample) -> list[Token]:
    """Return a completion's tokens, shaded by the size of their weights."""
    largest = max((abs(weight) for weight in sample.weights if weight == weight), default=0.0)
    drawn = []
    for text, score, weight in zip(sample.tokens, sample.scores, sample.weights, strict=True):
        share = abs(weight) / largest if largest > 0 and weight == weight else 0.0
        shade = max(1, round(SHADES * share)) if share > 0 else 0
        drawn.append(Token(_token_text(text), shade, f"score {score:.3f} · weight {weight:.3g}"))
    return drawn


def token_map(sample: TokenSample, scorer: str) -> list[MapRow]:
    """Return the tokens once per scorer, shaded by its probability that they are wrong; none for a single row.

    The truth comes first if it is known.
    """
    scores = {scorer: sample.scores} | sample.beside
    rows = [MapRow(figures.name(name), _by_score(sample.tokens, own)) for name, own in scores.items()]
    if sample.wrong is not None:
        truth = [
            Token(_token_text(t), SHADES * w, "") for t, w in zip(sample.tokens, sample.wrong, strict=True)
        ]
        rows.insert(0, MapRow("truth", truth))
    return rows if len(rows) > 1 else []


def all_tokens(sample: TokenSample, scorer: str) -> list[Token]:
    """Return the tokens with everything known of each: weight, every scorer's score, and the truth."""
    scores = {scorer: sample.scores} | sample.beside
    drawn = []
    for place, token in enumerate(tokens(sample)):
        notes = [f"weight {sample.weights[place]:.3g}"]
        notes += [f"{figures.name(name)} {own[place]:.3f}" for name, own in scores.items()]
        notes += ["truly wrong"] if sample.wrong is not None and sample.wrong[place] else []
        drawn.append(replace(token, note=" · ".join(notes)))
    return drawn


def _by_score(texts: list[str], scores: list[float]) -> list[Token]:
    shades = [round(SHADES * (1 - score)) if score == score else 0 for score in scores]
    return [
        Token(_token_text(text), shade, f"score {score:.3f}")
        for text, shade, score in zip(texts, shades, scores, strict=True)
    ]


def _token_text(text: str) -> str:
    return figures.printable(text, limit=LONGEST).replace("\n", "⏎\n") or "∅"
