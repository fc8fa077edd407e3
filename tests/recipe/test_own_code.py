"""Functions of the user's own, named as `file.py:function`."""

import inspect
from pathlib import Path

import pytest

from allo.errors import UserError
from allo.recipe.own_code import load_function, own_file


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
        ("\nimport sys\nsys.exit(0)\n", "fails to load in line 3: SystemExit: 0"),
        ("raise SystemExit\n", "fails to load in line 1: SystemExit"),
        ("class Own(BaseException): pass\nraise Own('why')\n", "fails to load in line 2: Own: why"),
        ("raise GeneratorExit\n", "GeneratorExit"),
        ("def f():\n    return f()\nf()\n", "fails to load in line 2: RecursionError"),
        ("x = 1\0\n", "null bytes"),
        ("import no_such_package\n", "fails to load in line 1: ModuleNotFoundError"),
        ("from functools import partial\nother = partial(int, 3)\n", "no function 'twice'"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, text: str | None, found: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"score\.scorer") as refusal:
        load_function(f"{file}:twice", key="score.scorer")
    assert found in str(refusal.value) and "mine.py" in str(refusal.value)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("raise ValueError('why')", "fails in line 2: ValueError: why"),
        ("return 1 / 0", "fails in line 2: ZeroDivisionError"),
        ("raise SystemExit(3)", "fails in line 2: SystemExit: 3"),
        ("return twice(x)", "fails in line 2: RecursionError"),
        ("return [].pop()", "fails in line 2: IndexError"),
        ("return int('many')", "fails in line 2: ValueError"),
        ("assert x == 2, 'two is wanted'", "fails in line 2: AssertionError: two is wanted"),
    ],
)
def test_an_error_of_the_function_names_it_its_file_and_its_line(
    tmp_path: Path, body: str, found: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def twice(x):\n    {body}\n")
    with pytest.raises(UserError) as refusal:
        load_function(f"{file}:twice", key="score.scorer")(21)
    assert str(refusal.value).startswith(f"score.scorer: {file}:twice {found}")


def test_an_interruption_and_a_refusal_of_the_function_stay_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from allo.errors import UserError\n"
        "def stop(x):\n    raise KeyboardInterrupt\n"
        "def refuse(x):\n    raise UserError('the reason')\n"
    )
    with pytest.raises(KeyboardInterrupt):
        load_function(f"{file}:stop", key="k")(1)
    with pytest.raises(UserError, match=r"^the reason$"):
        load_function(f"{file}:refuse", key="k")(1)


def test_the_function_keeps_its_signature(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def loss(margins, *, delta=0.5):\n    return margins\n")
    assert str(inspect.signature(load_function(f"{file}:loss", key="loss"))) == "(margins, *, delta=0.5)"
