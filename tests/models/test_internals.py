"""The internals of other libraries: each is listed, used, and missed as soon as it goes or changes."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from allo.errors import UserError
from allo.models import internals

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "allo"
LIBRARIES = {"transformers", "accelerate", "trl", "peft"}
STANDARD = {"_exit", "_asdict", "_fields"}  # os's and namedtuple's, documented

ROWS = [(user, internal) for user, listed in internals.INTERNALS.items() for internal in listed]
every_internal = pytest.mark.parametrize(("user", "internal"), ROWS, ids=[internal for _, internal in ROWS])


def path_of(internal: str) -> str:
    return internal.partition("(")[0]


def last_name(internal: str) -> str:
    return re.split(r"[.:]", path_of(internal))[-1]


def replace(path: str, value: Any, patch: pytest.MonkeyPatch) -> None:
    """Put `value` where pkgutil.resolve_name finds `path`."""
    owner, _, name = path.rpartition("." if "." in path.partition(":")[2] else ":")
    patch.setattr(pkgutil.resolve_name(owner), name, value, raising=False)


def remove(internal: str, patch: pytest.MonkeyPatch) -> None:
    """Remove a function from its module or a method from its classes; for an attribute, empty the class."""
    path = path_of(internal)
    module, _, names = path.partition(":")
    owner = path.rpartition(".")[0]
    if "." not in names:
        patch.delattr(importlib.import_module(module), names)
    elif "(" not in internal:
        replace(owner, type("Empty", (), {}), patch)
    else:
        for kind in pkgutil.resolve_name(owner).mro():
            if last_name(internal) in vars(kind):
                patch.delattr(kind, last_name(internal))


@every_internal
def test_an_internal_that_is_gone_is_refused(
    user: str, internal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(internals.INTERNALS, user, {internal: "nothing breaks"})
    internals.check(user)
    remove(internal, monkeypatch)
    package = internal.split(":")[0].split(".")[0]
    with pytest.raises(UserError) as raised:
        internals.check(user)
    said = str(raised.value)
    assert said.startswith(f"{package} {importlib.metadata.version(package)}: ")
    assert f"{path_of(internal).replace(':', '.')} is gone" in said
    assert f"{user} uses it so that nothing breaks" in said
    assert f"pip install '{package}{internals.WORKING[package]}'" in said


@pytest.mark.parametrize(("user", "internal"), [row for row in ROWS if "(" in row[1]])
def test_another_parameter_is_refused(user: str, internal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: Any, another: Any) -> None: ...

    monkeypatch.setitem(internals.INTERNALS, user, {internal: ""})
    replace(path_of(internal), changed, monkeypatch)
    expected = re.escape(internal.partition("(")[2])
    with pytest.raises(UserError, match=rf"takes \(self, another\) and not \({expected}"):
        internals.check(user)


def calls(function: Any) -> str | None:
    """The change that is found if the library has `function`, and allo expects `function(self, one, ...)`."""
    module = SimpleNamespace(function=function)
    sys.modules["a_library"] = module  # type: ignore[assignment]
    try:
        return internals._change("a_library:function(self, one, ...)")
    finally:
        del sys.modules["a_library"]


def test_further_parameters_must_be_optional() -> None:
    assert calls(lambda self, one: None) is None
    assert calls(lambda self, one=1, two=2: None) is None
    assert calls(lambda self, one, *rest, **named: None) is None
    assert calls(lambda self, one, two: None) is not None
    assert calls(lambda self, one, *, two: None) is not None
    assert calls(lambda self, two, one: None) is not None
    assert calls(lambda self: None) is not None


def test_every_change_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        internals.INTERNALS,
        "allo.models",
        {"transformers:Trainer._one": "", "transformers:Trainer._two": "", "transformers.three:four": ""},
    )
    with pytest.raises(UserError, match="_one is gone and 2 more"):
        internals.check("allo.models")
    monkeypatch.setitem(internals.INTERNALS, "allo.models", {"transformers.three:four": ""})
    with pytest.raises(UserError, match=r"cannot be imported \(No module named 'transformers.three'"):
        internals.check("allo.models")


@pytest.mark.parametrize(
    ("removed", "user"),
    [
        ("transformers:Trainer._save_rng_state()", "allo.training.checkpointing"),
        ("transformers:Trainer._clip_grad_norm()", "allo.training.checkpointing"),
        ("transformers.core_model_loading:WeightTransform.rename_source_key()", "allo.models"),
        ("transformers.conversion_mapping:get_model_conversion_mapping", "allo.models"),
        ("trl:DPOTrainer._prepare_dataset()", "allo.baselines.adapters"),
        ("trl:GRPOTrainer._tokenize_prompts()", "allo.baselines.on_policy"),
        ("torch:UntypedStorage._cdata", "allo.plan.live_bytes"),
    ],
)
def test_importing_a_user_is_refused(removed: str, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(user)
    with monkeypatch.context() as patch:
        remove(removed, patch)
        with pytest.raises(UserError, match=rf"{last_name(removed)} is gone"):
            importlib.reload(module)


def test_a_run_says_so_without_a_traceback_before_its_first_stage(tmp_path: Path) -> None:
    code = (
        "import sys, transformers\n"
        "del transformers.Trainer._load_rng_state\n"
        "from allo.cli import main\n"
        "sys.argv = ['allo', 'run', 'recipes/lab.yaml', '--set', f'out={sys.argv[1]}']\n"
        "main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    said = " ".join((run.stdout + run.stderr).split())
    assert run.returncode == 2, said
    assert "Traceback" not in said
    assert "Trainer._load_rng_state is gone" in said
    assert not (tmp_path / "lab" / "00-sft").exists()


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def own_names() -> set[str]:
    """The names that allo itself defines: functions, classes, and attributes that its methods set."""
    found = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if ast.unparse(node.value) == "self" else set()
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def used_of_others() -> dict[str, str]:
    """Underscore attributes that allo does not define, and names from within libraries, each with its place."""
    own, found = own_names(), {}
    for path, tree in sources():
        for node in ast.walk(tree):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
                found[node.attr] = place
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
                if isinstance(name := node.args[1], ast.Constant) and private(str(name.value)):
                    found[str(name.value)] = place
            elif isinstance(node, ast.ImportFrom) and node.module:
                library, *inner = node.module.split(".")
                if inner and (library in LIBRARIES or any(map(private, inner))):
                    found |= {alias.name: place for alias in node.names}
            elif isinstance(node, ast.Import):
                assert not any(
                    alias.name.split(".")[0] in LIBRARIES and "." in alias.name for alias in node.names
                )
    return {name: place for name, place in found.items() if name not in STANDARD}


@functools.cache
def overridden() -> dict[str, str]:
    """Methods of the libraries' classes that a class of allo defines anew, each with the class."""
    from transformers import TrainerCallback

    found = {}
    for module in pkgutil.walk_packages([str(SOURCE)], "allo."):
        if module.name in ("allo.__main__", "allo.models.internals"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(kind) or issubclass(kind, TrainerCallback):  # documented
                continue
            ours = [each for each in kind.__mro__ if each.__module__.startswith("allo.")]
            theirs = [each for each in kind.__mro__ if each.__module__.split(".")[0] in LIBRARIES]
            for name in {name for each in ours for name in vars(each) if not name.startswith("__")}:
                if any(name in vars(each) for each in theirs):
                    found[name] = kind.__qualname__
    return found


def test_the_list_is_complete() -> None:
    listed = {name for _, internal in ROWS for name in re.split(r"[.:]", path_of(internal))}
    missing = {name: place for name, place in (used_of_others() | overridden()).items() if name not in listed}
    assert not missing, "name each in allo/models/internals.py, with its reason"


def test_the_scan_finds_what_is_there() -> None:
    assert {
        "_n_gpu",
        "_attn_implementation",
        "bytes_to_unicode",
        "FakeTensor",
        "_prepare_inputs",
    } <= used_of_others().keys()
    assert {"_save_rng_state", "_send_telemetry", "evaluation_loop", "update"} <= overridden().keys()


def test_the_list_has_nothing_that_its_user_does_not_use() -> None:
    unused = []
    for user, listed in internals.INTERNALS.items():
        folder = SOURCE.joinpath(*user.split(".")[1:])
        files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.name != "internals.py")
        unused += [(user, name) for name in listed if not re.search(rf"\b{last_name(name)}\b", text)]
    assert unused == []


def test_the_versions_that_work_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = {each.name: each.specifier for each in map(Requirement, sum(extras, project["dependencies"]))}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in pins if not line.startswith("#"))
    for package, working in internals.WORKING.items():
        assert tested[package] in SpecifierSet(working)
        assert [each for each in declared[package] if str(each) in working.split(",")] == list(
            declared[package]
        )
