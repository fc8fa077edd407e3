"""A preview for readers: facts and counts, then one example of each kind of training row, token by token."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from allo.console import printable, tell
from allo.files.sizes import size
from allo.models.token_texts import num_unknown, token_texts
from allo.models.tokenization import turn_end_ids
from allo.plan.preview_sample import SampledPair
from allo.plan.preview_tokens import SHOWN_ENDS, Token, laid_out
from allo.recipe import Improve, Recipe
from allo.recipe.losses import ANSWER_LOSSES
from allo.recipe.sources import HELD_OUT
from allo.stages.check import Findings
from allo.stages.checked_rows import Asked, Trained

_PLAIN_WIDTH, _WIDEST = 80, 100
_LABEL = 11  # columns of the first facts' names
_COMPLETION_ENDS = 100  # tokens shown at each end of a long completion


@dataclass(frozen=True)
class Preview:
    """A preview; `stages` says whether each is finished, `pair` is one that the run has sampled.

    `marked`: of the wrong answers' tokens, those that have weight, and all, once they are scored. `shares`: the stages'
    shares of the time, in words.
    """

    recipe: Recipe
    found: Findings
    stages: dict[str, bool]
    pair: SampledPair | None = None
    marked: tuple[int, int] | None = None
    shares: str = ""


def show(preview: Preview, *, plain: bool) -> None:
    """Print a preview to standard output, in colours on a terminal unless `plain`."""
    console = Console(highlight=False, emoji=False)
    if plain or not console.is_terminal or console.no_color or console.color_system is None:
        for line in lines(preview, width=_PLAIN_WIDTH, plain=True):
            tell(line.plain)
        return
    for line in lines(preview, width=min(console.width, _WIDEST), plain=False):
        console.print(line, soft_wrap=True)


def lines(preview: Preview, *, width: int, plain: bool) -> Iterator[Text]:
    """Yield the lines of a preview, at most `width` columns wide."""
    for label, fact in _facts(preview):
        yield from _wrapped(f"{label:<{_LABEL}}", fact, width)
    for key, facts in _counts(preview).items():
        yield Text()
        yield Text(printable(key), style="bold")
        for fact in facts:
            yield from _wrapped("  ", fact, width)
    yield from _examples(preview, width, plain)


def _facts(preview: Preview) -> Iterator[tuple[str, str]]:
    recipe, found = preview.recipe, preview.found
    positions = "no limit of" if found.positions is None else f"{found.positions:,}"
    space = f"at least {size(found.disk.needed)} more are needed, {size(found.disk.free)} are free"
    yield "run", f"{recipe.run_folder}: {space}"
    yield "model", f"{recipe.model}: {found.num_weights:,} weights in {recipe.dtype}, {positions} positions"
    yield from (("", sentence) for sentence in found.unread)
    if found.selects:
        yield "locate", found.selects
    if recipe.score is not None and recipe.forget is not None:
        unknown = f"by `{recipe.score.scorer}` (score.scorer); once it has run, it says which share of the tokens it marks"
        yield "score", recipe.score.share_said(*preview.marked) if preview.marked else unknown
    yield "tokenizer", f"{len(found.tokenizer):,} tokens; {_ends(preview)}"
    yield "rows", f"at most {recipe.max_length:,} tokens, prompt and completion together (max_length)"
    without = " (nothing is fine-tuned)" if recipe.sft is None else ""
    yield "stages", ", ".join(f"{name}{without if name == 'sft' else ''}" for name in preview.stages)
    if preview.shares:
        yield "time", preview.shares
    done = [name for name, is_done in preview.stages.items() if is_done]
    if done:
        yield "done", ", ".join(done)


def _ends(preview: Preview) -> str:
    """Return the end of a finished completion, for each form of the recipe's prompts."""
    found = preview.found
    rows: list[Trained | Asked] = [*found.trained, *found.asked]
    forms = {form for one in rows for form in one.forms}
    words = {"messages": "the answer to messages ends with {}", "text": "the answer to a text ends with {}"}
    return "; ".join(words[form].format(_end(found, form)) for form in sorted(forms))


def _end(found: Findings, form: str) -> str:
    turn_end = turn_end_ids(found.tokenizer) if form == "messages" else []
    return " ".join(token_texts(found.tokenizer, turn_end or [found.tokenizer.eos_token_id]))


def _counts(preview: Preview) -> dict[str, list[str]]:
    """Return sentences under each source's key, in the order of the stages that read them."""
    recipe, found = preview.recipe, preview.found
    said: dict[str, list[str]] = {}
    for trained in found.trained:
        said.setdefault(trained.key, []).extend(_of_trained(trained, recipe.max_length))
    for asked in found.asked:
        said.setdefault(asked.key, []).extend(_of_asked(asked, recipe))
    for key, reading in found.readings.items():
        sentences = said.setdefault(key, [])
        sentences.insert(0, _number(reading.rows, "row", "read"))
        sentences += reading.sentences
    for key, sentences in found.tried.items():
        said.setdefault(key, []).extend(sentences)
    for sentence in found.held_out:
        said.setdefault(f"data.{HELD_OUT}", []).append(sentence)
    rows: list[Trained | Asked] = [*found.trained, *found.asked]
    for one in rows:
        unknown = num_unknown(found.tokenizer, _ids(one))
        if unknown:
            said[one.key].append(
                f"{_number(unknown, 'row', '')} with what the tokenizer does not know ({found.tokenizer.unk_token})"
            )
    order = ("sft", "data", "improve", "evaluate")
    return {key: said[key] for key in sorted(said, key=lambda key: order.index(key.split(".")[0]))}


def _ids(one: Trained | Asked) -> list[list[int]]:
    """Return the ids of all rows of one key, prompts and completions."""
    if isinstance(one, Asked):
        return one.ids
    sides = ("prompt_ids", "completion_ids", "chosen_ids", "rejected_ids")
    return [[number for side in sides for number in row.get(side, [])] for row in one.rows]


def _of_trained(trained: Trained, max_length: int) -> Iterator[str]:
    kinds = {"data.pairs": "pair", "data.feedback": "labelled completion"}
    what = kinds.get(trained.key, "solution")
    yield _number(len(trained.rows), what, "trained on")
    if trained.labels:
        yield trained.labels
    if trained.without:
        yield f"{_number(trained.without, 'prompt', 'left out')}: without a `solution`"
    if trained.counts.dropped:
        yield f"{_number(trained.counts.dropped, 'row', 'dropped')}: {trained.counts.reasons(max_length)}"
    if trained.counts.cut:
        yield f"{_number(trained.counts.cut, 'prompt', 'cut')}: the beginning is lost, to fit into max_length"


def _of_asked(asked: Asked, recipe: Recipe) -> Iterator[str]:
    times = f", sampled {recipe.sample.num_generations} times each" if asked.key == "data" else ""
    yield f"{_number(len(asked.ids), 'prompt', '')}{times}; {asked.judged}"
    if asked.cut:
        yield f"{_number(asked.cut, 'prompt', 'cut')}: the beginning is lost, to leave room for the answer"


def _number(number: int, what: str, done: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'} {done}".rstrip()


def _examples(preview: Preview, width: int, plain: bool) -> Iterator[Text]:
    """Yield one example of every kind of training row."""
    found, recipe = preview.found, preview.recipe
    marks = "in [brackets]" if plain else "in colour"
    yield Text()
    yield from _wrapped(
        "",
        f"Examples, token by token; the tokens that carry loss are {marks}. · is a space, ⏎ ends a line.",
        width,
    )
    page = _Page(found, width, plain)
    for trained in found.trained:
        if trained.labels:
            yield from page.labelled(recipe, trained)
            continue
        row = trained.rows[0]
        yield from page.title(f"{trained.key}, the first of its rows")
        yield from page.prompt(row["prompt_ids"])
        if "chosen_ids" in row:
            yield from page.pair(recipe, SampledPair(**row, weights=None))
        else:
            weights = row["token_weights"]
            yield from page.completion("solution", row["completion_ids"], weights, _counting(weights))
    if recipe.data.is_ready:
        return
    if preview.pair is not None:
        yield from page.title("data, a pair that the run has sampled")
        yield from page.prompt(preview.pair.prompt_ids)
        yield from page.pair(recipe, preview.pair)
        return
    asked = next(one for one in found.asked if one.key == "data")
    yield from page.title("data, the first prompt as it is sampled from")
    yield from page.prompt(asked.ids[0])
    for sentence in (
        _sampled(preview, asked),
        *_learned(recipe),
        "Run `allo run` up to its pairs to see some here.",
    ):
        yield from _wrapped("  ", sentence, width)


def _sampled(preview: Preview, asked: Asked) -> str:
    ends = sorted({_end(preview.found, form) for form in asked.forms})
    stop = [repr(each) for each in preview.recipe.sample.stop]
    return f"Completions are sampled by the run; each ends with {' or '.join([*ends, *stop])}."


def _learned(recipe: Recipe) -> Iterator[str]:
    """Yield which tokens of the samples will carry loss."""
    judged = bool(recipe.judge.function or recipe.judge.reward_model)
    if recipe.improve is not None and recipe.improve.trained_by.samples:
        yield "Every sampled token carries loss, by the advantage of its completion's reward."
        return
    good, bad = ("higher reward", "lower reward") if judged else ("right answer", "wrong answer")
    yield f"In each pair, the completion with the {good} is chosen, and the one with the {bad} rejected."
    if recipe.improve is not None:
        yield "All tokens of the chosen one carry loss."
    if rejected := "; ".join(_rejected(recipe, None)):
        yield f"Of the rejected one, {rejected}."


def _counting(weights: Sequence[float]) -> str:
    number = sum(weight > 0 for weight in weights)
    return "all carry loss" if number == len(weights) else f"{number} carry loss"


@dataclass(frozen=True)
class _Page:
    """The layout of examples."""

    found: Findings
    width: int
    plain: bool

    def title(self, text: str) -> Iterator[Text]:
        yield Text()
        yield Text(printable(text), style="bold")

    def prompt(self, ids: list[int]) -> Iterator[Text]:
        yield from _wrapped("  ", f"prompt ({_number(len(ids), 'token', '')}, none carries loss)", self.width)
        yield from self._tokens(ids, [0.0] * len(ids))

    def completion(
        self, name: str, ids: list[int], weights: Sequence[float], note: str, *, kind: str = "good"
    ) -> Iterator[Text]:
        yield from _wrapped("  ", f"{name} ({_number(len(ids), 'token', '')}; {note})", self.width)
        yield from self._tokens(ids, weights, kind=kind, ends=_COMPLETION_ENDS)

    def pair(self, recipe: Recipe, pair: SampledPair) -> Iterator[Text]:
        """Yield both answers of a pair, with the tokens that count."""
        all_of = [1.0] * len(pair.chosen_ids)
        yield from self.completion("chosen", pair.chosen_ids, all_of, "all carry loss")
        yield from self._bad(recipe, "rejected", pair.rejected_ids, pair.weights)

    def labelled(self, recipe: Recipe, trained: Trained) -> Iterator[Text]:
        """Yield the first good and the first bad completion with the tokens that count."""
        for label, name in ((True, "good"), (False, "bad")):
            row = next((row for row in trained.rows if row["label"] == label), None)
            if row is None:
                continue
            yield from self.title(f"{trained.key}, the first {name} one of its rows")
            yield from self.prompt(row["prompt_ids"])
            ids = row["completion_ids"]
            if not label:
                yield from self._bad(recipe, name, ids, None)
                continue
            counts = 1.0 if recipe.improve or recipe.locate else 0.0
            note = "all carry loss" if counts else "none carries loss"
            yield from self.completion(name, ids, [counts] * len(ids), note)

    def _bad(
        self, recipe: Recipe, name: str, ids: list[int], weights: Sequence[float] | None
    ) -> Iterator[Text]:
        shown = weights or [1.0] * len(ids)
        note = "; ".join(_rejected(recipe, weights))
        if not note:
            note, shown = "none carries loss", [0.0] * len(ids)
        yield from self.completion(name, ids, shown, note, kind="bad")

    def _tokens(
        self, ids: list[int], weights: Sequence[float], *, kind: str = "", ends: int = SHOWN_ENDS
    ) -> Iterator[Text]:
        texts = token_texts(self.found.tokenizer, ids)
        tokens = [Token(text, weight > 0) for text, weight in zip(texts, weights, strict=True)]
        for line in laid_out(tokens, width=self.width - 4, plain=self.plain, kind=kind, ends=ends):
            yield Text("    ") + line


def _rejected(recipe: Recipe, weights: Sequence[float] | None) -> Iterator[str]:
    """Yield the rejected tokens that each training stage counts."""
    if recipe.forget is not None:
        marked = weights and f"the {sum(weight > 0 for weight in weights)} marked ones"
        yield f"forget weighs {marked or 'its tokens by the scores of `score`'}"
    if recipe.improve is not None and recipe.improve.loss not in ANSWER_LOSSES:
        yield f"improve counts {_kept(recipe.improve)}"


def _kept(improve: Improve) -> str:
    if improve.keep >= 1 or not improve.trained_by.selects:
        return "all of them"
    which = {"random": "drawn at random", "lowest": "of lowest log-ratio", "highest": "of highest log-ratio"}
    return f"{improve.keep:.0%} of them, those {which[improve.filter]} during training"


def _wrapped(lead: str, text: str, width: int) -> Iterator[Text]:
    hanging = " " * len(lead)
    for line in textwrap.wrap(
        printable(text), width, initial_indent=lead, subsequent_indent=hanging, break_on_hyphens=False
    ):
        yield Text(line)
