"""Rewriters: their data, their training, and the scorer that uses one."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.errors import UserError
from allo.files.artifacts import read_json, read_jsonl, sha256_file, write_jsonl
from allo.files.records import Completion, Message, Pair, Verdict, Wrong
from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.rewriter.cases import Run, open_run
from allo.rewriter.data import record_of
from allo.tokens.edit_distance import edit_distance, edit_share, nearest, text_ids
from allo.tokens.rewrite_wording import ask_for_rewrite
from rewriter_setup import VARIABLE, made, place, rows
from server import KEY, Chat, serving, without_proxy
from tiny import TOKENIZER
from tiny_run import RECIPE, overrides

# Prompts of the tiny run: some of their 4 samples each are wrong.


def plain_distance(one: list[int], other: list[int]) -> int:
    """Compute Levenshtein's recursion."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return plain_distance(one[1:], other[1:])
    return 1 + min(
        plain_distance(one[1:], other), plain_distance(one, other[1:]), plain_distance(one[1:], other[1:])
    )


@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=5))
def test_the_edit_distance_is_levenshteins(one: list[int], other: list[int]) -> None:
    assert edit_distance(one, other) == plain_distance(one, other)
    assert edit_share(one, other) == plain_distance(one, other) / max(len(one), len(other), 1)


def test_the_nearest_is_the_first_of_the_fewest_edits() -> None:
    # difflib would call the third one nearest: it keeps the longest common run.
    def digits(text: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=list(map(int, text)))

    assert nearest("1234", ["9", "1934", "23411", "1294"], digits) == "1934"  # type: ignore[arg-type]


def test_the_draft_stands_last_and_a_chat_stays_a_chat() -> None:
    text = ask_for_rewrite("PROBLEM\n", right="RIGHT", completion=" WRONG ")
    assert isinstance(text, str)
    assert text.index("PROBLEM") < text.index("RIGHT") < text.index("WRONG") and text.endswith(":\n")
    system, user = Message(role="system", content="SYSTEM"), Message(role="user", content="PROBLEM\n")
    chat = ask_for_rewrite([system, user], right="RIGHT", completion="WRONG")
    assert isinstance(chat, list)
    assert chat[0] == system and chat[1]["role"] == "user" and len(chat) == 2
    assert chat[1]["content"] == ask_for_rewrite("PROBLEM", right="RIGHT", completion="WRONG").strip()  # type: ignore[union-attr]


def test_gold_rewrites_every_wrong_completion_as_the_solution(run: Run, out: Path) -> None:
    counts = made(run, out, "gold", identity=0.0)
    wrong = read_jsonl(run.folder.wrong, Wrong)
    assert [(row["completion"], row["rewrite"], row["right"]) for row in rows(out)] == [
        (one.completion, one.solution, one.solution) for one in wrong
    ]
    assert counts == {"wrong": len(wrong), "kept": len(wrong), "identity": 0, "dropped": {}}


def test_nearest_takes_the_right_sample_of_the_fewest_edits(run: Run, out: Path) -> None:
    counts = made(run, out, "nearest", identity=0.0)
    wrong = {one.id: one for one in read_jsonl(run.folder.wrong, Wrong)}
    kept = rows(out)
    for row in kept:
        one = wrong[row["id"]]
        distances = [
            edit_distance(text_ids(row["completion"], TOKENIZER), text_ids(text, TOKENIZER))
            for text in one.right
        ]
        assert row["rewrite"] in one.right and row["edits"] == min(distances) > 0
        assert row["right"] == one.solution
    without = [one for one in wrong.values() if not one.right]
    assert len(kept) == len(wrong) - len(without) > 0
    assert counts["dropped"] == ({"no right sample": len(without)} if without else {})


def test_identity_rows_are_right_samples_in_the_share_that_is_asked_for(run: Run, out: Path) -> None:
    counts = made(run, out, "gold", identity=0.25)
    found = rows(out)
    same = [row for row in found if row["source"] == "identity"]
    right = {
        (v.prompt_id, v.text) for v in read_jsonl(run.folder.verdicts, Verdict) if v.correct and v.finished
    }
    assert all(row["completion"] == row["rewrite"] and row["edits"] == 0 for row in same)
    assert {(row["id"].partition("-right-")[0], row["completion"]) for row in same} <= right
    assert len(same) == counts["identity"] == round(counts["kept"] / 3)
    assert len({row["id"] for row in found}) == len(found)
    first = out.read_bytes()
    made(run, out, "gold", identity=0.25)
    assert out.read_bytes() == first, "the same seed draws the same rows"
    made(run, out, "gold", identity=0.25, seed=1)
    assert out.read_bytes() != first


def test_too_many_edits_are_dropped_and_counted(run: Run, out: Path) -> None:
    everything = made(run, out, "gold", identity=0.0)
    shares = [
        edit_share(text_ids(row["completion"], TOKENIZER), text_ids(row["rewrite"], TOKENIZER))
        for row in rows(out)
    ]
    limit = sorted(shares)[len(shares) // 2]
    counts = made(run, out, "gold", identity=0.0, max_distance=limit)
    assert counts["kept"] == sum(share <= limit for share in shares) < everything["kept"]
    assert counts["dropped"] == {"too many edits": sum(share > limit for share in shares)}
    with pytest.raises(UserError, match=r"no rewrite is left of \d+ wrong completions: too many edits \d+"):
        made(run, out, "gold", max_distance=0.0)


def test_self_keeps_what_is_right_and_near_and_goes_on_where_it_was_killed(
    run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The laboratory's model was never asked to repair; sampled often enough, it sometimes does.
    counts = made(run, out, "self", identity=0.0, num_generations=16, max_distance=0.9)
    wrong = {one.id: one for one in read_jsonl(run.folder.wrong, Wrong)}
    for row in rows(out):
        answer = run.prompts[wrong[row["id"]].prompt_id].answer
        assert row["rewrite"].endswith(f"The answer is {answer}.") and row["source"] == "self"
        assert edit_share(*(text_ids(row[key], TOKENIZER) for key in ("completion", "rewrite"))) <= 0.9
    assert counts["kept"] + sum(counts["dropped"].values()) == counts["wrong"] and counts["dropped"]
    whole = out.read_bytes()
    assert not list(out.parent.glob("*.part"))

    from allo.files.artifacts import ResumableLines

    append, batches = ResumableLines.append, []

    def killed(lines: ResumableLines, batch: list[Any]) -> None:
        if batches:
            raise KeyboardInterrupt
        append(lines, batch)
        batches.append(batch)

    out.unlink()
    monkeypatch.setattr(ResumableLines, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        made(run, out, "self", identity=0.0, num_generations=16, max_distance=0.9)
    monkeypatch.setattr(
        ResumableLines, "append", lambda lines, batch: (batches.append(batch), append(lines, batch))
    )
    made(run, out, "self", identity=0.0, num_generations=16, max_distance=0.9)
    assert out.read_bytes() == whole
    samples = [each for batch in batches for each in batch if isinstance(each, Completion)]
    assert len(samples) == 16 * counts["wrong"], "no completion is repaired twice"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, run: Run) -> Iterator[Chat]:
    """Reply as a teacher that knows the solutions, since it is shown them."""
    monkeypatch.setenv(VARIABLE, KEY)
    without_proxy(monkeypatch)
    with serving(lambda content: content.split("Correct solution:\n")[1].split("\n\nDraft:")[0]) as served:
        yield served


def test_a_teachers_rewrites_are_kept_where_they_are_right_and_near(run: Run, out: Path, chat: Chat) -> None:
    made(run, out, "gold", identity=0.0, max_distance=0.5)
    gold = [(row["id"], row["rewrite"]) for row in rows(out)]
    counts = made(run, out, "teacher", identity=0.0, endpoint=place(chat, price_in=1.0, price_out=2.0))
    assert [(row["id"], row["rewrite"]) for row in rows(out)] == gold
    wrong = counts["wrong"]
    assert counts["dropped"] == ({"too many edits": wrong - len(gold)} if wrong > len(gold) else {})
    assert counts["endpoint"]["cost"] == pytest.approx(wrong * (10 * 1.0 + 5 * 2.0) / 1e6)
    asked = len(chat.requests)
    made(run, out, "teacher", identity=0.0, endpoint=place(chat, price_in=1.0, price_out=2.0))
    assert len(chat.requests) == asked == wrong, "nothing is asked twice"


def test_bad_replies_of_a_teacher_are_counted_by_reason(
    run: Run, out: Path, chat: Chat, capfd: pytest.CaptureFixture[str]
) -> None:
    chat.failures = [
        lambda handler: handler.refuse(500, f"out of order, {KEY}"),
        lambda handler: handler.say("The answer is 999."),
        lambda handler: handler.say("First", finish_reason="length"),
        lambda handler: handler.say(None),
    ]
    counts = made(run, out, "teacher", max_distance=1.0, identity=0.0, endpoint=place(chat, concurrency=1))
    assert counts["dropped"] == {"not answered": 1, "not right": 1, "not finished": 1, "without text": 1}
    said = capfd.readouterr().err
    assert "not answered: 500" in said
    files = [path.read_text() for path in out.parent.rglob("*") if path.is_file()]
    assert len(files) == 3 and not [text for text in (*files, said, repr(counts)) if KEY in text]


def test_ready_pairs_have_gold_and_nearest_but_nothing_to_verify_by(tmp_path: Path, out: Path) -> None:
    pairs = [Pair("p", "Problem: Tom has 7 pens.\n", chosen="The answer is 7.", rejected="The answer is 8.")]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    data = f'data={{"pairs": "{tmp_path / "pairs.jsonl"}"}}'
    paired = run_all(load_recipe(RECIPE, overrides(tmp_path, data, "sft=null")), until="pair")
    own = open_run(paired.path)
    for source in ("gold", "nearest"):
        made(own, out, source, identity=0.5)
        assert [row["rewrite"] for row in rows(out)] == ["The answer is 7."] * 2
        assert [row["source"] for row in rows(out)] == [source, "identity"]
    with pytest.raises(UserError, match="--source self: the run uses ready pairs"):
        made(own, out, "self")


def test_a_run_without_pairs_says_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"03-wrong\.jsonl: not there yet; run `allo run --until pair`"):
        open_run(RECIPE, overrides(tmp_path))


def test_the_record_tells_how_the_rows_were_made(run: Run, out: Path) -> None:
    counts = made(run, out, "gold")
    record = read_json(record_of(out))
    assert record["sha256"] == sha256_file(out) and record["counts"] == counts and record["source"] == "gold"
