"""Functions of the user's own, named as `file.py:function`."""

from pathlib import Path

import pytest

from allo.errors import UserError
from allo.own_code import load_function, own_file


def test_the_function_that_is_named_is_the_one_that_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def twice(x):\n    return 2 * x\n")
    assert load_function(f"{file}:twice", key="score.scorer")(21) == 42


@pytest.mark.parametrize("name", ["implicit", "mine.py", "mine.py:", "mine.py:1x", "mine:twice"])
def test_any_other_name_is_no_file(name: str) -> None:
    assert own_file(name) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "no such file"),
        ("def twice(:\n", "SyntaxError"),
        ("raise ValueError('why')\n", "ValueError: why"),
        ("from os import getcwd\ndef thrice(x):\n    return x\n", "no function 'twice'; it has thrice."),
        ("twice = 2\n", "it has none"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, text: str | None, found: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"score\.scorer") as refusal:
        load_function(f"{file}:twice", key="score.scorer")
    assert found in str(refusal.value) and "mine.py" in str(refusal.value)
