"""The split into rows to train on and held-out rows: no prompt on both sides, the same one each time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.errors import UserError
from allo.files.records import Message, Pair, Prompt
from allo.tasks.held_out import number_of, sentence, split


def pair(prompt: str | list[Message], number: int) -> Pair:
    return Pair(f"p{number}", prompt, f"good {number}", f"bad {number}")


def texts(pairs: list[Pair]) -> set[str]:
    return {str(pair.prompt).casefold().strip(" ?!.") for pair in pairs}


@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.integers(0, 2**32 - 1), st.floats(0.01, 0.6))
def test_no_prompt_is_on_both_sides_and_no_row_is_lost(asked: list[int], seed: int, share: float) -> None:
    pairs = [pair(f"Which is {number}?", place) for place, number in enumerate(asked)]
    if len(set(asked)) == 1:
        return
    kept, held_out = split(pairs, share, seed=seed)
    assert texts(kept).isdisjoint(texts(held_out))
    assert sorted(kept + held_out, key=lambda one: int(one.prompt_id[1:])) == pairs
    assert len(texts(held_out)) == max(1, round(share * len(set(asked))))


@pytest.mark.parametrize(
    "other",
    [
        "name a tree",
        "Name a tree.\n",
        "NAME  A   TREE!",
        [Message(role="user", content="Name a tree.")],
        [Message(role="system", content="Name a"), Message(role="user", content="tree")],
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_prompts_of_the_same_words_stay_together(other: str | list[Message], seed: int) -> None:
    pairs = [pair("Name a tree.", 0), pair("Name a bird.", 1), pair(other, 2), pair("Name a fish.", 3)]
    kept, held_out = split(pairs, 1, seed=seed)
    ids = {one.prompt_id for one in held_out}
    assert ids in ({"p0", "p2"}, {"p1"}, {"p3"})
    assert len(kept) + len(held_out) == 4


def test_prompts_without_words_differ_by_their_signs() -> None:
    pairs = [pair("?", 0), pair("!", 1), pair("=>", 2)]
    kept, held_out = split(pairs, 1, seed=0)
    assert (len(kept), len(held_out)) == (2, 1)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    pairs = [pair(f"Which is {number}?", number) for number in range(200)]
    held_out = split(pairs, 20, seed=7)[1]
    assert set(map(str, split(pairs[::-1], 20, seed=7)[1])) == set(map(str, held_out))
    assert split(pairs, 20, seed=8)[1] != held_out


def test_more_rows_keep_most_of_what_was_held_out() -> None:
    prompts = [Prompt(str(number), f"Which is {number}?") for number in range(110)]
    few, more = split(prompts[:100], 20, seed=0)[1], split(prompts, 20, seed=0)[1]
    assert len(set(map(str, few)) & set(map(str, more))) >= 10


@pytest.mark.parametrize(
    ("held_out", "of", "number"),
    [
        *((None, 100, 0), (0, 100, 0), (7, 100, 7), (0.25, 100, 25), (0.001, 100, 1)),
        *(("auto", 1, 0), ("auto", 4, 0), ("auto", 5, 1), ("auto", 100, 20), ("auto", 160, 32)),
        *(("auto", 640, 32), ("auto", 2000, 100), ("auto", 10_240, 512), ("auto", 10**6, 512)),
    ],
)
def test_the_number_of_held_out_prompts(held_out: int | float | str | None, of: int, number: int) -> None:
    assert number_of(held_out, of) == number


@pytest.mark.parametrize("held_out", [3, 4, 1000, 0.99])
def test_nothing_left_to_train_on_is_refused(held_out: float) -> None:
    pairs = [pair(f"Which is {number % 3}?", number) for number in range(9)]
    with pytest.raises(UserError, match=r"^data.held_out: .* all 3 distinct prompts, and none is left"):
        split(pairs, held_out, seed=0)


def test_a_single_prompt_is_trained_on_unless_it_is_asked_for() -> None:
    pairs = [pair("Which?", number) for number in range(9)]
    assert split(pairs, "auto", seed=0) == (pairs, [])


@pytest.mark.parametrize(
    ("number", "said"),
    [(4, "uncertain by 49 points"), (24, "uncertain by 20 points"), (25, None), (512, None)],
)
def test_a_few_held_out_rows_are_said_to_decide_little(number: int, said: str | None) -> None:
    sentence_of = sentence([], [pair("Which?", place) for place in range(number)])
    assert said in sentence_of if said else "uncertain" not in sentence_of
