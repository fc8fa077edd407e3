"""The recipe: what it allows, what it refuses with which words, and what wins over what."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from allo.errors import UserError
from allo.recipe import Recipe, load_recipe, save_recipe, schema

SMALLEST = """\
name: smallest
model: some/model

data:
  task: planted_flaws

evaluate:
  sets:
    test: {task: planted_flaws, split: test}
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a recipe: the smallest one with lines added."""

    def written(more: str = "", text: str = SMALLEST) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text + more)
        return path

    return written


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(path, list(overrides))
    return str(error.value)


def test_the_smallest_recipe_has_the_papers_densities(write) -> None:
    recipe = load_recipe(write())
    assert recipe.forget is not None and recipe.improve is not None
    assert (recipe.forget.density, recipe.improve.density, recipe.improve.keep) == (0.05, 0.10, 0.5)
    assert recipe.max_density == 0.10
    assert recipe.run_folder == Path("runs/smallest")


def test_a_misspelt_key_names_line_and_suggestion(write) -> None:
    path = write("improve:\n  density: 0.1\n  kepe: 0.5\n")
    assert refusal(path) == f"{path}:12: improve.kepe: unknown key; did you mean 'keep'?"


def test_an_unknown_key_lists_what_is_allowed_there(write) -> None:
    assert refusal(write("report: {zzz: 1}\n")).endswith(
        "report.zzz: unknown key; allowed here: title, num_examples"
    )


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ("seeed: 1\n", "seed"),
        ("sample:\n  tempreature: 1\n", "temperature"),
        ("data: {task: planted_flaws, spilt: train}\n", "split"),
        ("sft:\n  sources:\n    - {task: gsm8k, limt: 3}\n", "limit"),
        ("evaluate:\n  sets:\n    test: {task: gsm8k, limt: 3}\n", "limit"),
    ],
)
def test_a_suggestion_is_made_at_every_depth(write, lines: str, key: str) -> None:
    block = lines.split(":")[0]
    others = "\n".join(part for part in SMALLEST.split("\n\n") if not part.startswith(f"{block}:"))
    assert f"did you mean {key!r}?" in refusal(write("\n" + lines, others))


def test_every_problem_is_named_at_once(write) -> None:
    found = refusal(write("seed: -1\nimprove: {density: 2}\n")).splitlines()
    assert [line.split(": ")[1] for line in found] == ["seed", "improve.density"]


@pytest.mark.parametrize("granularity", ["weight", "row", "column", "block(2)", "block(128)"])
def test_what_is_selected_together_is_named(write, granularity: str) -> None:
    recipe = load_recipe(write(), [f"locate.granularity={granularity}"])
    assert recipe.locate is not None and recipe.locate.granularity == granularity


@pytest.mark.parametrize("granularity", ["rows", "block", "block(1)", "block(two)", "''"])
def test_an_unknown_granularity_lists_the_known_ones(write, granularity: str) -> None:
    found = refusal(write(f"locate:\n  granularity: {granularity}\n"))
    assert ":11: locate.granularity: " in found and "weight, row, column and block(n)" in found


def test_the_mirrored_scores_of_bottom_have_no_norm(write) -> None:
    found = refusal(write("locate: {criterion: bottom, granularity: row}\n"))
    assert ":10: locate: " in found and "set granularity to weight" in found


@pytest.mark.parametrize("density", ["0", "-0.1", "1.5", ".nan", "ten", "[0.1]", "null"])
@pytest.mark.parametrize("stage", ["forget", "improve"])
def test_a_density_is_a_share_above_zero(write, stage: str, density: str) -> None:
    assert f":11: {stage}.density: " in refusal(write(f"{stage}:\n  density: {density}\n"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("name=a/b", "name"),
        ("name=''", "name"),
        ("seed=1.5", "seed"),
        ("dtype=float16", "dtype"),
        ("chat=perhaps", "chat"),
        ("max_length=0", "max_length"),
        ("sample.num_generations=many", "sample.num_generations"),
        ("sample.top_p=0", "sample.top_p"),
        ("sample.temperature=-1", "sample.temperature"),
        ("improve.loss=dppo", "improve.loss"),
        ("improve.loss_settings={alpha: high}", "improve.loss_settings.alpha"),
        ("improve.anchor=-1", "improve.anchor"),
        ("improve.filter=middle", "improve.filter"),
        ("forget.loss=sentence", "forget.loss"),
        ("improve.beta=0", "improve.beta"),
        ("locate.criterion=best", "locate.criterion"),
        ("improve.training.learning_rate=0", "improve.training.learning_rate"),
        ("improve.training.save_total_limit=1", "improve.training.save_total_limit"),
        ("evaluate.sets=[]", "evaluate.sets"),
        ("data.file=x.jsonl", "data"),  # two origins
        ("data.task=null", "data"),  # none
        ("evaluate.kl={split: test}", "evaluate.kl"),
        ("improve.density=yes", "improve.density"),  # 1.0 to a lenient reader
        ("seed=true", "seed"),
        ("evaluate.sets.test.num_generations=false", "evaluate.sets.test.num_generations"),
        ("improve.training.save_total_limit='2'", "improve.training.save_total_limit"),
        ("improve.beta=.inf", "improve.beta"),
        ("sample.max_new_tokens=0", "sample.max_new_tokens"),
        ("sample.temperature=0", "sample"),  # ten times the same completion
        ("evaluate.sets.a/b={task: gsm8k}", "evaluate.sets.a/b"),  # part of a file's name
        ("data={pairs: pairs.jsonl, order: shuffled}", "data"),
        ("data={mixture: [{task: ecqa}]}", "data.mixture"),  # of one
        ("data={task: ecqa, mixture: [{task: ecqa}, {task: qasc}]}", "data"),
        ("data={mixture: [{task: ecqa}, {task: qasc}], split: test}", "data"),
        ("data={mixture: [{task: ecqa, weight: 3}, {task: qasc}]}", "data"),
        ("data={mixture: [{task: ecqa, weight: 0}, {task: qasc}]}", "data.mixture.0.weight"),
    ],
)
def test_a_wrong_value_names_its_key(write, override: str, key: str) -> None:
    assert f": {key}: " in refusal(write(), override)


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["forget=null", "improve=null"], "nothing would be trained"),
        (["score=null"], "set `forget: null`"),
        (["improve.loss=rft"], "loss rft has no rejected answer to filter: set keep to 1.0"),
        (["improve={loss: sft, keep: 1.0, anchor: 1}"], "set anchor to 0"),
        (
            ["forget=null", "improve={loss: ipo, trainer: lora}"],
            "has a loss of its own: remove loss and anchor",
        ),
        (["improve={loss: sft, keep: 1.0, loss_settings: {a: 1}}"], "remove loss_settings.a"),
        (["improve={loss: sft, keep: 1.0}", "data={pairs: pairs.jsonl}"], "set it to rft"),
        (["locate=null"], "must be 1.0"),
        (["locate.criterion=fisher"], "set locate.criterion to warmup"),
        (["max_length=1024"], "sample.max_new_tokens 1024 must be below max_length 1024"),
        (["evaluate.greedy=false", "evaluate.num_generations=0"], "set 'test' has no completion to measure"),
        (["evaluate.greedy=false", "evaluate.sets.test.num_generations=0"], "set 'test' has no completion"),
    ],
)
def test_stages_that_do_not_fit_each_other_are_refused(write, overrides: list[str], advice: str) -> None:
    assert advice in refusal(write(), *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["improve.density=1", "improve.beta=1", "sample.temperature=1"],  # integers are numbers
        ["sample.temperature=0", "sample.num_generations=1"],
        ["evaluate.greedy=false"],
        ["evaluate.num_generations=0"],
        ["evaluate.greedy=false", "evaluate.num_generations=0", "evaluate.sets.test.num_generations=2"],
        ["data={pairs: pairs.jsonl, skip: 1}", "max_length=1024"],  # nothing is sampled to train on
        ["evaluate.sets.a-b_c={task: gsm8k}"],
    ],
)
def test_what_is_possible_is_allowed(write, overrides: list[str]) -> None:
    load_recipe(write(), overrides)


def test_a_missing_key_is_named(write) -> None:
    path = write(text=SMALLEST.replace("model: some/model\n", ""))
    assert refusal(path) == f"{path}: model: required key is missing"


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n", "a: [1\n", "a: 1\n\tb: 2\n"])
def test_what_is_no_mapping_is_refused_by_name(write, text: str) -> None:
    assert "recipe.yaml" in refusal(write(text=text))


def test_a_recipe_that_is_absent_a_folder_or_no_text_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.yaml")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    assert "binary.yaml" in refusal(tmp_path / "binary.yaml")


def test_defaults_yield_to_the_file_and_the_file_to_set(write) -> None:
    path = write("improve: {density: 0.2}\n")
    assert load_recipe(write()).improve.density == 0.10  # type: ignore[union-attr]
    path = write("improve: {density: 0.2}\n")
    assert load_recipe(path).improve.density == 0.2  # type: ignore[union-attr]
    assert load_recipe(path, ["improve.density=0.3"]).improve.density == 0.3  # type: ignore[union-attr]
    assert load_recipe(path, ["improve.density=0.3", "improve.density=0.4"]).max_density == 0.4


def test_set_reads_yaml(write) -> None:
    recipe = load_recipe(
        write(),
        [
            "improve.training.learning_rate=5e-6",  # PyYAML alone reads a string
            "sample.stop=['\\n\\n', \"Q:\"]",
            "evaluate.sets.more={task: gsm8k, limit: 3}",
            "sft.sources=[{task: ecqa, limit: 2}]",
            "score=null",
            "forget=null",
            "pad_token='</s>'",
            "improve.loss_settings={a: 1, b: true}",
        ],
    )
    assert recipe.improve is not None and recipe.improve.training.learning_rate == 5e-6
    a, b = recipe.improve.loss_settings.values()
    assert (a, b) == (1.0, True) and not isinstance(a, bool) and b is True
    assert recipe.sample.stop == ["\\n\\n", "Q:"]
    assert list(recipe.evaluate.sets) == ["test", "more"] and recipe.evaluate.sets["more"].limit == 3
    assert recipe.sft is not None and recipe.sft.sources[0].task == "ecqa"
    assert recipe.forget is None and recipe.pad_token == "</s>"


@pytest.mark.parametrize(
    ("text", "value"), [("5e-6", 5e-6), ("5E-6", 5e-6), ("1e3", 1e3), ("-.5e-1", -0.05), ("1.5e+2", 150.0)]
)
def test_floats_without_a_point_are_floats(write, text: str, value: float) -> None:
    """Also where the recipe knows no type: transformers would get a string."""
    path = write(f"improve:\n  training:\n    max_grad_norm: {text}\n")
    for recipe in (load_recipe(path), load_recipe(write(), [f"improve.training.max_grad_norm={text}"])):
        assert recipe.improve is not None
        assert recipe.improve.training.model_dump()["max_grad_norm"] == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("improve.bta=0.2", "--set: improve.bta: unknown key; did you mean 'beta'?"),
        ("improve.beta=abc", '--set: improve.beta: Input should be a valid number; found "abc"'),
        ("improve={bta: 1}", "--set improve: improve.bta: unknown key; did you mean 'beta'?"),
    ],
)
def test_a_fault_of_an_override_is_not_the_files(write, override: str, said: str) -> None:
    path = write("improve:\n  beta: 0.1\n")
    assert refusal(path, override) == said
    assert refusal(path, "seed=1", "improve.kep=1").startswith("--set: improve.kep: ")
    assert refusal(write("improve:\n  bta: 0.1\n"), "seed=1").startswith(str(path))


@pytest.mark.parametrize("override", ["improve.density", "=1", "name.part=1", "seed=[1", ""])
def test_a_bad_override_is_quoted(write, override: str) -> None:
    assert f"--set {override}: " in refusal(write(), override)


def test_what_is_saved_reads_back_equal(write, tmp_path: Path) -> None:
    recipe = load_recipe(
        write("sft: {sources: [{task: ecqa, limit: 2}], training: {max_steps: 3, optim: adamw_torch}}\n"),
        [
            "improve.training.learning_rate=1e-12",
            "sample.stop=['é\\n']",
            "data_folder=rows",
            "report.title=π",
        ],
    )
    (tmp_path / "saved.yaml").write_text(save_recipe(recipe))
    again = load_recipe(tmp_path / "saved.yaml")
    assert again == recipe
    assert save_recipe(again) == save_recipe(recipe)
    assert again.sft is not None and again.sft.training.model_dump()["max_steps"] == 3


def test_the_schema_is_json_and_forbids_unknown_keys() -> None:
    found = json.loads(json.dumps(schema()))
    assert found["additionalProperties"] is False
    assert set(found["required"]) == {"name", "model", "data"}
    assert found["properties"].keys() == Recipe.model_fields.keys()
    assert found["$defs"]["Improve"]["properties"]["density"]["exclusiveMinimum"] == 0


def test_reading_a_recipe_takes_neither_torch_nor_transformers(write) -> None:
    program = (
        "import sys; from pathlib import Path; from allo.recipe import load_recipe; import allo.cli; "
        f"load_recipe(Path({str(write())!r})); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_secret_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nmodel: m\ndata: {task: gsm8k}\nevaluate: {sets: {a: {task: gsm8k}}}\n")
    with pytest.raises(UserError, match=r"improve\.training\.hub_token.*HF_TOKEN") as refused:
        load_recipe(path, ["improve.training.hub_token=hf_abc123"])
    assert "hf_abc123" not in str(refused.value)


def test_the_implicit_scorer_takes_either_warmup(write) -> None:
    assert load_recipe(write("locate: {criterion: warmup_fused}\n")).reads_warmup
    assert "set locate.criterion to warmup or warmup_fused" in refusal(
        write("locate: {criterion: gradient}\n")
    )
