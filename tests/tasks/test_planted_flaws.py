"""The laboratory task and its model: right and flawed demonstrations, and labels that locate the flaws."""

import difflib
import itertools
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from allo.errors import UserError
from allo.files.records import Prompt
from allo.tasks import planted_flaws, planted_stories
from allo.tasks.planted_flaws import Demonstration

LAB = Path(str(files("allo") / "lab"))
EVALUATED = [name for name, split in planted_flaws.SPLITS.items() if split.part != "train"]
WORD_SPLITS = ("train", "validation", "validation_both", "test", "reworded", "reworded_train", "unseen")
SIZE = 500
CHANCE = 1e-4
"""A binomial test may reject a right generator this often; the seeds are fixed, so it does so never or always."""

MAX_FOLDER_BYTES = 3_000_000
SAMPLED_BAND = (0.40, 0.68)
GREEDY_MARGIN = 0.10
"""The model's sampled accuracy on `test` lies in the band, its greedy accuracy this much above."""


@cache
def some(split: str, level: int | None = None, size: int = SIZE) -> list[Demonstration]:
    return list(planted_flaws.demonstrations(split, level=level, size=size))


def read_problem(prompt: Prompt) -> int:
    """Find the answer by reading the sentences, without knowing how they are made."""
    assert isinstance(prompt.prompt, str)
    story = prompt.prompt.removeprefix("Problem: ").split(" How many")[0]
    opening, *sentences = re.findall(r"[^.]+\.", story)
    total = int(re.search(r"\d+", opening)[0])  # type: ignore[index]
    hero = opening.split()[0]
    for sentence in sentences:
        amount = int(re.search(r"\d+", sentence)[0])  # type: ignore[index]
        if re.search(" times (as|the number)", sentence):
            total *= amount
        elif re.search(r"are out\.|taken from it|put in a bag", sentence):  # `unseen`
            total -= amount
        elif re.search(
            rf"gives {hero}|sells (him|her)|from a bag|buys (?!.*from (him|her))|finds|makes|put in"
            r"|holds|added to it|end up here|of a bag",
            sentence,
        ):
            total += amount
        elif re.search(r"gives|loses|sells|buys .* from (him|her)|to a bag|removed|taken out", sentence):
            total -= amount
        else:
            assert "are added." in sentence, sentence
            total += amount
    return total


def read_completion(completion: str) -> tuple[bool, list[int], int]:
    """Return whether a completion's equations hold and continue each other, its results, and its answer."""
    lines = [tuple(map(str, line)) for line in re.findall(r"(\d+) (.) (\d+) = (\d+)\.", completion)]
    compute = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    holds = all(compute[op](int(a), int(b)) == int(c) for a, op, b, c in lines)
    linked = all(before[3] == after[0] for before, after in itertools.pairwise(lines))
    answer = re.search(r"The answer is (\d+)\.$", completion)
    assert answer
    return holds and linked, [int(line[3]) for line in lines], int(answer[1])


@pytest.mark.parametrize("split", planted_flaws.SPLITS)
def test_a_split_begins_the_same_at_any_size(split: str) -> None:
    assert list(planted_flaws.demonstrations(split, size=20)) == some(split)[:20]
    assert list(planted_flaws.load(split, size=20)) == [d.prompt for d in some(split)[:20]]


@pytest.mark.parametrize("split", planted_flaws.SPLITS)
def test_a_level_is_that_part_of_the_split(split: str) -> None:
    by_level = {level: some(split, level)[:30] for level in planted_flaws.LEVELS}
    training = planted_flaws.SPLITS[split].part == "train"
    mix = planted_flaws.LEVEL_MIX if training else planted_flaws.EVALUATION_LEVEL_MIX
    places = {level: [i for i in range(200) if mix[i % len(mix)] == level] for level in by_level}
    for level, own in by_level.items():
        assert own == [some(split)[i] for i in places[level]][:30]


@pytest.mark.parametrize("split", EVALUATED)
def test_no_two_problems_of_an_evaluation_split_have_the_same_solution(split: str) -> None:
    solutions = [d.prompt.solution for d in planted_flaws.demonstrations(split)]
    assert len(solutions) == planted_flaws.SPLITS[split].size == len(set(solutions))
    assert len(list(planted_flaws.load(split, size=10_000))) == len(solutions), "it ends with its own size"


def test_no_solution_is_in_two_of_the_splits_that_are_tested_on() -> None:
    tested = [{d.prompt.solution for d in some(split)} for split in ("test", "reworded", "unseen")]
    assert len(set.union(*tested)) == sum(map(len, tested))


def test_ids_are_unique() -> None:
    ids = [d.prompt.id for split in planted_flaws.SPLITS for d in some(split)]
    assert len(set(ids)) == len(ids)


def test_no_problem_is_in_two_parts() -> None:
    parts: dict[str, set[str]] = {}
    for name, split in planted_flaws.SPLITS.items():
        texts = {d.prompt.solution for d in some(name)} if split.family != "unrelated" else set()
        texts |= {str(d.prompt.prompt) for d in some(name)}
        parts.setdefault(split.part, set()).update(text for text in texts if text)
    assert parts["train"].isdisjoint(parts["test"])
    assert parts["train"].isdisjoint(parts["validation"])
    assert parts["validation"].isdisjoint(parts["test"])


def test_validation_of_both_families_takes_turns() -> None:
    """A person has a name; a container an article, or "there are"."""
    told = [not re.match("(A|An|There) ", opening) for opening in openings("validation_both")]
    assert told == [index % 2 == 0 for index in range(len(told))]


def test_no_sentence_of_the_unseen_family_is_in_a_text_that_a_model_saw() -> None:
    """Numbers, names, things and containers are excluded, as all families share those words."""

    def sentences(split: str) -> set[str]:
        found = (str(d.prompt.prompt).removeprefix("Problem: ") for d in some(split, size=2000))
        told = {part.strip() for text in found for part in re.split(r"(?<=[.?])", text)}
        cast = [*planted_stories._PRONOUNS, *planted_stories._ITEMS, *planted_stories._BOXES]
        return {
            re.sub(rf"\d+|\b(?:{'|'.join(cast)}|[Ss]?[Hh]e|him|her)\b", "_", sentence) for sentence in told
        }

    seen = set.union(*(sentences(split) for split in ("train", "validation", "test", "reworded_train")))
    own = sentences("unseen")
    assert len(own - {""}) == 11, "two openings, eight changes, a question"
    assert own.isdisjoint(seen - {""})


def openings(split: str) -> list[str]:
    return [str(d.prompt.prompt).removeprefix("Problem: ") for d in some(split)]


@pytest.mark.parametrize("split", WORD_SPLITS)
def test_half_of_the_demonstrations_are_flawed(split: str) -> None:
    shares = [planted_flaws.FLAWED_SHARE[level] for level in planted_flaws.LEVEL_MIX]
    assert sum(shares) / len(shares) == pytest.approx(0.5)
    for level in (None, *planted_flaws.LEVELS):
        flaws = [d.flaw is not None for d in some(split, level)]
        share = planted_flaws.FLAWED_SHARE[level] if level else 0.5
        assert binomtest(sum(flaws), len(flaws), share).pvalue > CHANCE


@pytest.mark.parametrize("split", WORD_SPLITS)
def test_right_demonstrations_answer_the_story_and_flawed_ones_do_not(split: str) -> None:
    for demonstration in some(split):
        prompt = demonstration.prompt
        assert prompt.solution
        assert prompt.answer == str(read_problem(prompt))
        assert read_completion(prompt.solution)[::2] == (True, int(prompt.answer))
        consistent, _, answer = read_completion(demonstration.completion)
        assert consistent, "a flaw is a wrong reading, never a wrong sum"
        assert (answer == int(prompt.answer)) == (demonstration.flaw is None)
        assert (demonstration.completion == prompt.solution) == (demonstration.flaw is None)


@pytest.mark.parametrize("split", WORD_SPLITS)
def test_spans_are_where_a_flawed_demonstration_departs_from_the_right_one(split: str) -> None:
    for demonstration in some(split):
        right, given = str(demonstration.prompt.solution), demonstration.completion
        labels = planted_flaws.planted_tokens(given, demonstration.flaw)
        if demonstration.flaw is None:
            assert not any(labels)
            continue
        given_words, right_words = given.split(), right.split()
        if demonstration.flaw.kind == "dropped":  # the last step's six words are missing
            assert labels == [False] * (len(labels) - 5) + [True, False, False, True, False]
            assert given_words[:-4] == right_words[: len(given_words) - 4]
            continue
        matcher = difflib.SequenceMatcher(None, given, right, autojunk=False)
        assert len(given_words) == len(right_words) and matcher.ratio() < 1
        departs = [a.strip(".") for a, b in zip(given_words, right_words, strict=True) if a != b]
        assert [given[start:end].strip() for start, end in demonstration.flaw.spans] == departs
        cause = departs[0]
        assert (cause in "+-*") == (demonstration.flaw.kind == "operation")


def test_labels_of_any_completion() -> None:
    prompt = next(iter(planted_flaws.load("test", level=1, size=1)))
    assert prompt.solution
    first, second, end = re.findall(r"\w+ \d+ . \d+ = \d+\.|The answer is \d+\.", prompt.solution)
    assert planted_flaws.label_tokens(prompt, prompt.solution) == [False] * 19
    extra = planted_flaws.label_tokens(prompt, f"{first} {second} Then 1 + 1 = 2. {end}")
    assert extra == [False] * 14 + [True] * 7 + [False] * 5, "a step too many is wrong in each word"
    early = planted_flaws.label_tokens(prompt, f"{first} {end}")
    assert early == [False] * 7 + [True] + [False] * 4, "the right answer, but a step is missing"
    assert planted_flaws.label_tokens(prompt, f"{first} {second}") is None
    assert planted_flaws.label_tokens(prompt, "") is None


def test_levels_differ_in_steps_size_and_traps() -> None:
    results = {
        level: [read_completion(str(d.prompt.solution))[1] for d in some("test", level)]
        for level in (1, 2, 3)
    }
    assert {level: {len(r) for r in results[level]} for level in results} == {1: {2}, 2: {3}, 3: {3}}
    assert max(max(r) for level in results for r in results[level]) <= planted_stories.LARGEST
    starts = {
        level: [int(str(d.prompt.solution).split()[1]) for d in some("test", level)] for level in results
    }
    assert max(starts[1]) < max(starts[2])
    assert all(d.flaw.kind == "operation" for d in some("test", 3) if d.flaw)
    kinds = {d.flaw.kind for d in some("test", 1) if d.flaw}
    assert kinds == {"operation", "operand", "dropped"}


def test_unknown_split_and_level_are_user_errors() -> None:
    with pytest.raises(UserError, match="no split 'dev'; choose one of train"):
        planted_flaws.load("dev")
    with pytest.raises(UserError, match="no level 4"):
        planted_flaws.load("test", level=4)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(LAB)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(LAB).eval()


@pytest.mark.parametrize("split", planted_flaws.SPLITS)
def test_every_text_survives_the_tokenizer(split: str, tokenizer: PreTrainedTokenizerFast) -> None:
    for demonstration in some(split):
        prompt, completion = str(demonstration.prompt.prompt), demonstration.completion
        prompt_ids = tokenizer(prompt)["input_ids"]
        completion_ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        assert prompt_ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in prompt_ids[1:]
        assert tokenizer.unk_token_id not in prompt_ids + completion_ids
        assert tokenizer.decode(completion_ids) == completion
        assert tokenizer.decode(prompt_ids, skip_special_tokens=True) == prompt
        assert tokenizer(prompt + completion)["input_ids"] == prompt_ids + completion_ids
        assert tokenizer.batch_decode([[i] for i in completion_ids]) == planted_flaws.words(completion)


def test_the_shipped_model_is_small() -> None:
    assert sum(path.stat().st_size for path in LAB.iterdir()) <= MAX_FOLDER_BYTES


def test_the_shipped_model_knows_the_right_and_the_flawed_behaviour(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = list(planted_flaws.load("test", size=150))
    inputs = tokenizer(
        [str(p.prompt) for p in prompts], padding=True, padding_side="left", return_tensors="pt"
    )

    def accuracy(**settings: object) -> float:
        out = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **settings)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return (
            sum(text.endswith(f" The answer is {p.answer}.") for p, text in zip(prompts, texts, strict=True))
            / 150
        )

    torch.manual_seed(0)
    sampled = accuracy(do_sample=True)
    greedy = accuracy(do_sample=False)
    assert SAMPLED_BAND[0] <= sampled <= SAMPLED_BAND[1]
    assert greedy >= sampled + GREEDY_MARGIN
