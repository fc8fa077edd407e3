"""Recipes that are made to mislead or to exhaust: each is refused in no time, by line and key, with what to do."""

import sys
import time
from pathlib import Path

import pytest

from allo import cli
from allo.errors import UserError
from allo.recipe import Recipe, load_recipe, save_recipe

SMALLEST = """\
name: smallest
model: some/model
data: {task: planted_flaws}
evaluate: {sets: {test: {task: planted_flaws, split: test}}}
"""
NEXT = SMALLEST.count("\n") + 1  # the line of what is added
LONGEST = 20.0  # seconds; a machine with other work included, and far below what each text stands for


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


def refusal(path: Path, *overrides: str) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        load_recipe(path, list(overrides))
    assert time.monotonic() - began < LONGEST
    return str(error.value)


@pytest.mark.parametrize(
    ("added", "key", "lines"),
    [
        ("seed: 1\nseed: 2\n", "seed", (0, 1)),
        ("seed: 1\nchat: true\nseed: 1\n", "seed", (0, 2)),  # also of the same value
        ("improve: {beta: 0.1, density: 0.1, beta: 0.2}\n", "improve.beta", (0, 0)),
        ("improve:\n  training:\n    max_steps: 1\n    max_steps: 9\n", "improve.training.max_steps", (2, 3)),
        (
            "improve:\n  training:\n    'max_steps': 1\n    max_steps: 9\n",
            "improve.training.max_steps",
            (2, 3),
        ),
        ("sft:\n  sources:\n  - {task: gsm8k, task: math}\n", "sft.sources.0.task", (2, 2)),
        (
            "compare:\n  validation: {task: ecqa}\n  methods:\n    a: {}\n    a: {}\n",
            "compare.methods.a",
            (3, 4),
        ),
        ("sample: {extra_body: {top_k: 1, top_k: 2}}\n", "sample.extra_body.top_k", (0, 0)),
        ("name: another\n", "name", (1 - NEXT, 0)),
        ("sample:\n  <<: {top_p: 0.5}\n  <<: {top_p: 0.7}\n", "sample.<<", (1, 2)),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_both_lines(
    tmp_path: Path, added: str, key: str, lines: tuple[int, int]
) -> None:
    path = written(tmp_path, SMALLEST + added)
    first, second = (NEXT + line for line in lines)
    assert refusal(path) == (
        f"{path}:{second}: {key}: the key is there twice, in line {first} and in line {second}; keep one of them."
    )


def test_a_key_that_is_there_twice_in_set_is_refused(tmp_path: Path) -> None:
    found = refusal(written(tmp_path, SMALLEST), "improve={beta: 0.1, beta: 0.2}")
    assert found.startswith("--set improve={beta: 0.1, beta: 0.2}: improve.beta: the key is there twice")


def test_aliases_and_merged_blocks_mean_what_they_say(tmp_path: Path) -> None:
    text = SMALLEST + (
        "forget: {training: &t {learning_rate: 1e-6, max_steps: 3}}\n"
        "improve: {training: {<<: *t, max_steps: 4}}\nlocate: {training: *t}\n"
    )
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.forget and recipe.improve and recipe.locate
    stages = [stage.training.model_dump() for stage in (recipe.forget, recipe.improve, recipe.locate)]
    assert [stage["max_steps"] for stage in stages] == [3, 4, 3]
    assert {stage["learning_rate"] for stage in stages} == {1e-6}


def bomb(kind: str) -> str:
    """Nine levels of nine aliases each."""
    lines = ["a0: &a0 {k: v}" if kind == "merge" else "a0: &a0 [x, x]"]
    for level in range(1, 10):
        several = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(
            {
                "list": f"a{level}: &a{level} [{several}]",
                "block": f"a{level}: &a{level} {{{', '.join(f'k{n}: *a{level - 1}' for n in range(9))}}}",
                "merge": f"a{level}: &a{level} {{<<: [{several}]}}",
            }[kind]
        )
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("kind", ["list", "block", "merge"])
def test_a_bomb_of_aliases_is_refused(tmp_path: Path, kind: str) -> None:
    assert "its aliases stand for more than" in refusal(written(tmp_path, SMALLEST + bomb(kind)))


@pytest.mark.parametrize("text", ["improve: &a [*a]\n", "improve: &a {beta: *a}\n", "improve: &a {<<: *a}\n"])
def test_an_alias_of_itself_is_refused(tmp_path: Path, text: str) -> None:
    assert "an alias of itself" in refusal(written(tmp_path, SMALLEST + text))


@pytest.mark.parametrize(
    "deep",
    ["[" * 100_000, "[" * 200 + "]" * 200, "{a: " * 10_000, "- " * 5_000 + "x", "? " * 5_000],
    ids=["unclosed", "closed", "blocks", "dashes", "complex keys"],
)
def test_a_deep_text_is_refused(tmp_path: Path, deep: str) -> None:
    assert f"recipe.yaml:{NEXT}" in refusal(written(tmp_path, SMALLEST + f"improve: {deep}\n"))
    assert "--set improve=" in refusal(written(tmp_path, SMALLEST), f"improve={deep}")


@pytest.mark.parametrize("size", [1 << 20, 1 << 24])
def test_a_huge_file_is_refused(tmp_path: Path, size: int) -> None:
    found = refusal(written(tmp_path, SMALLEST + "#" * size))
    assert "recipe.yaml" in found and "a recipe has at most 1,048,576" in found


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ("improve: !!python/object/apply:os.system ['true']\n", ["improve: the tag", "python/object"]),
        ("improve: !!python/name:os.system\n", ["improve: the tag", "python/name"]),
        ("improve: !mine {beta: 1}\n", ["improve: the tag !mine is not read"]),
        ("improve: {beta: !!int many}\n", ["improve.beta: 'many' is no value of the tag !!int"]),
        ("chat: !!bool perhaps\n", ["chat: 'perhaps' is no value of the tag !!bool"]),
        ("data_folder: !!binary aGk=\n", ["data_folder: the tag !!binary is not read"]),
        ("improve: !!set {beta}\n", ["improve: the tag !!set is not read"]),
        ("on: x\n", ["the key `on` is no text"]),
        ("1: x\n", ["the key `1` is no text"]),
        ("1.5: x\n", ["the key `1.5` is no text"]),
        ("~: x\n", ["the key `~` is no text"]),
        ("[a, b]: x\n", ["the key a list or block is no text"]),
        ("improve: {no: 1}\n", ["improve: the key `no` is no text"]),
        (
            "improve: {training: {max_grad_norm: .inf}}\n",
            ["improve.training.max_grad_norm: .inf is not finite"],
        ),
        ("improve: {training: {max_grad_norm: 1e999}}\n", ["improve.training.max_grad_norm: 1e999 is not"]),
        ("sample: {extra_body: {x: .nan}}\n", ["sample.extra_body.x: .nan is not finite"]),
        (f"seed: {'9' * 5000}\n", ["seed: a number of 5000 digits"]),
        (f"seed: 0x{'f' * 5000}\n", ["seed: a number of 5002 digits"]),
        ('report: {title: "\\ud83d"}\n', ["report.title: the character '\\ud83d' is no text"]),
        ('model: "a\\0b"\n', ["recipe.yaml"]),  # which is also there twice
        ('data_folder: "a\\0b"\n', ["data_folder: the character '\\x00' is no text"]),
        ("seed: 1\n---\nseed: 2\n", ["not YAML", "single document"]),
        ("seed:\t1\n\tchat: 1\n", ["not YAML"]),
        ("seed: \x07\n", ["not YAML"]),
    ],
)
def test_what_is_no_plain_value_is_refused_by_its_line_and_key(
    tmp_path: Path, added: str, words: list[str]
) -> None:
    path = written(tmp_path, SMALLEST + added)
    found = refusal(path)
    assert found.startswith(f"{path}:")
    assert all(word in found for word in words), found


@pytest.mark.parametrize(
    ("added", "found"),
    [
        (
            "seed: 010\n",
            'seed: Input should be a valid integer; found "010"',
        ),  # 8 to some readers, 10 to others
        ("seed: 1:30\n", 'seed: Input should be a valid integer; found "1:30"'),  # 90 to YAML 1.1
        ("seed: 2024-01-01\n", 'seed: Input should be a valid integer; found "2024-01-01"'),
        ("pad_token: yes\n", "pad_token: Input should be a valid string; found true; put it in quotes"),
        ("pad_token: 12\n", "pad_token: Input should be a valid string; found 12; put it in quotes"),
        (
            "sample: {stop: [No]}\n",
            "sample.stop.0: Input should be a valid string; found false; put it in quotes",
        ),
    ],
)
def test_words_that_readers_of_yaml_take_differently_are_not_guessed(
    tmp_path: Path, added: str, found: str
) -> None:
    assert f":{NEXT}: {found}" in refusal(written(tmp_path, SMALLEST + added))


@pytest.mark.parametrize("name", ["2024-01-01", "010", "1:30", "'1e3'", "'yes'", "'12'", "'null'", "'='"])
def test_a_name_like_a_number_or_a_date_is_a_name_also_when_saved(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, SMALLEST + f"report: {{title: {name}}}\n")
    recipe = load_recipe(path)
    assert recipe.report.title == name.strip("'")
    assert load_recipe(written(tmp_path, save_recipe(recipe))) == recipe


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    plain = load_recipe(written(tmp_path, SMALLEST))
    text = SMALLEST.replace("\n", "\r\n")
    assert load_recipe(written(tmp_path, b"\xef\xbb\xbf" + text.encode())) == plain
    path = written(tmp_path, b"\xef\xbb\xbf" + (text + "seed: -1\r\n").encode())
    assert f"{path}:{NEXT}: seed: " in refusal(path)


@pytest.mark.parametrize("content", ["é".encode("latin-1"), SMALLEST.encode("utf-16"), b"\x00" * 100])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "recipe.yaml" in refusal(written(tmp_path, content))


def test_lines_stay_right_after_aliases_and_comments(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        SMALLEST + "# one\nforget: {training: &t {max_steps: 3}}\n\nimprove:\n  training: *t\n  kepe: 1\n",
    )
    assert refusal(path) == f"{path}:{NEXT + 5}: improve.kepe: unknown key; did you mean 'keep'?"


def test_the_command_shows_a_refusal_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, SMALLEST + bomb("list"))
    monkeypatch.setattr(sys, "argv", ["allo", "run", str(path)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and said.startswith("allo: ") and "aliases" in said


def test_every_default_is_a_plain_value(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, SMALLEST))
    assert isinstance(recipe, Recipe)
    assert load_recipe(written(tmp_path, save_recipe(recipe))) == recipe
