"""JSON from outside: accepted texts, and texts refused with a reason."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.errors import UserError
from allo.files.json_text import DEEPEST, MOST_DIGITS, parse_json

pytestmark = pytest.mark.invariant("JSON from outside goes through one bounded reader.")

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(VALUES, st.booleans())
def test_what_json_writes_is_read_back(value, ascii):
    text = json.dumps(value, ensure_ascii=ascii)
    assert parse_json(text, place="x") == value
    assert parse_json(text.encode(), place="x") == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10_000 + "]" * 10_000, "nested more than"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested more than"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested more than"),
        ("[" * 10_000, "x: "),
        ("9" * (MOST_DIGITS + 1), f"{MOST_DIGITS + 1} digits"),
        ("-" + "9" * 10_000, "digits"),
        ("1e999", "too large"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        ('{"prompt": "tree \\ud83d."}', "`prompt` has half of a surrogate pair"),
        ('{"messages": [{"content": "\\udc00"}]}', "`messages` has half of a surrogate pair"),
        ('["\\uD83D"]', "half of a surrogate pair"),
        ('{"\\ud83d": 1}', "half of a surrogate pair"),
        ("", "not JSON"),
        ("\x00\x00", "not JSON"),
        ('{"a": 1,}', "not JSON"),
        (b"\xff\xfe", "no UTF-8 text"),
    ],
)
def test_refused_with_its_reason(text, reason):
    with pytest.raises(UserError) as refused:
        parse_json(text, place="rows.jsonl:3", advice="Mend it.") if reason != "x: " else parse_json(
            text, place="x"
        )
    assert reason in str(refused.value)
    if reason != "x: ":
        assert str(refused.value).startswith("rows.jsonl:3: ") and str(refused.value).endswith(" Mend it.")


def test_a_whole_pair_and_a_byte_order_mark_are_text():
    assert parse_json('{"a": "\\ud83d\\ude00"}', place="x") == {"a": "😀"}
    assert parse_json('\ufeff{"a": 1}', place="x") == {"a": 1}
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', place="x") == {"a": 1}


def test_the_deepest_and_the_longest_that_are_allowed():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, place="x")
    assert math.log10(parse_json("9" * MOST_DIGITS, place="x")) == pytest.approx(MOST_DIGITS)


def test_a_text_beyond_the_bound_is_not_parsed():
    with pytest.raises(UserError, match="JSON of 12 bytes, and at most 11 are read"):
        parse_json(b'{"abc": 123}', place="x", largest=11)
