"""Two deltas on one base merge as applying one after the other would."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allo import cli
from allo.delta import apply_to_model, merge, read_delta, write_delta
from allo.errors import UserError
from allo.weights.fingerprints import as_bits, digests

BASE = {"a": torch.zeros(4, 5), "b": torch.zeros(7, dtype=torch.bfloat16), "c": torch.zeros(3)}
# Values that differ, that are equal, and that only their bits tell apart.
VALUES = (0.0, -0.0, 1.0, 2.0)

Entries = dict[str, dict[int, float]]
entries = st.fixed_dictionaries(
    {
        name: st.dictionaries(st.integers(0, tensor.numel() - 1), st.sampled_from(VALUES))
        for name, tensor in BASE.items()
    }
)


def written(path: Path, changes: Entries, *, base: dict[str, Tensor] = BASE) -> Path:
    tensors = {name: dict(sorted(change.items())) for name, change in changes.items()}
    write_delta(
        path,
        indices={n: torch.tensor([*change], dtype=torch.int32) for n, change in tensors.items()},
        values={n: torch.tensor([*change.values()], dtype=base[n].dtype) for n, change in tensors.items()},
        shapes={name: tuple(tensor.shape) for name, tensor in base.items()},
        base_hashes=digests(base.items()),
        metadata={"made_by": "extract", "name": path.stem, "shared": "yes"},
    )
    return path


def applied(*paths: Path) -> dict[str, Tensor]:
    tensors = {name: tensor.clone() for name, tensor in BASE.items()}
    for path in paths:
        apply_to_model(tensors.items(), read_delta(path))
    return tensors


@given(entries, entries)
@settings(max_examples=50, deadline=None)
def test_a_merged_delta_is_the_first_and_then_the_second(
    tmp_path_factory: pytest.TempPathFactory, first: Entries, second: Entries
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    one, two = written(folder / "one", first), written(folder / "two", second)
    found = merge(one, two, folder / "out")
    wanted = applied(one, two)
    for name, tensor in applied(folder / "out").items():
        assert torch.equal(as_bits(tensor), as_bits(wanted[name]))
    shared = [(name, place) for name in BASE for place in first[name].keys() & second[name].keys()]
    differ = [(n, i) for n, i in shared if repr(first[n][i]) != repr(second[n][i])]
    assert (found.num_shared, found.num_overruled) == (len(shared), len(differ))
    union = sum(len(first[name].keys() | second[name].keys()) for name in BASE)
    assert found.merged.num_changed == union


@given(entries, entries, entries)
@settings(max_examples=30, deadline=None)
def test_merging_is_associative(
    tmp_path_factory: pytest.TempPathFactory, first: Entries, second: Entries, third: Entries
) -> None:
    """To the byte; so three deltas have one merged file, however they are paired."""
    folder = tmp_path_factory.mktemp("merge")
    one, two, three = (
        written(folder / name, changes)
        for name, changes in {"one": first, "two": second, "three": third}.items()
    )
    merge(one, two, folder / "left")
    merge(folder / "left", three, folder / "left-first")
    merge(two, three, folder / "right")
    merge(one, folder / "right", folder / "right-first")
    assert (folder / "left-first").read_bytes() == (folder / "right-first").read_bytes()


@given(entries, entries)
@settings(max_examples=30, deadline=None)
def test_the_order_of_disjoint_deltas_is_irrelevant(
    tmp_path_factory: pytest.TempPathFactory, first: Entries, second: Entries
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    rest = {name: {i: v for i, v in second[name].items() if i not in first[name]} for name in BASE}
    one, two = written(folder / "one", first), written(folder / "two", rest)
    assert merge(one, two, folder / "out").num_shared == 0
    merge(two, one, folder / "turned")
    assert (folder / "out").read_bytes() == (folder / "turned").read_bytes()


def test_metadata_are_what_both_agree_on(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one", {"a": {0: 1.0}}), written(tmp_path / "two", {"b": {0: 1.0}})
    assert merge(one, two, tmp_path / "out").merged.metadata == {"made_by": "merge", "shared": "yes"}


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ({**BASE, "c": torch.ones(3)}, "c"),
        ({**BASE, "c": torch.zeros(3).half()}, "c"),
        ({**BASE, "d": torch.zeros(3)}, "d"),
        ({name: tensor for name, tensor in BASE.items() if name != "b"}, "b"),
    ],
    ids=["bits", "dtype", "more", "fewer"],
)
def test_deltas_on_two_bases_are_refused(tmp_path: Path, base: dict[str, Tensor], name: str) -> None:
    """Also where neither touches the tensor that differs."""
    one = written(tmp_path / "one", {"a": {0: 1.0}})
    two = written(tmp_path / "two", {"a": {1: 1.0}}, base=base)
    with pytest.raises(UserError, match=rf"made from two bases: tensor {name} differs"):
        merge(one, two, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_was_overruled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "one", {"a": {0: 1.0, 1: 1.0, 2: 1.0}})
    written(tmp_path / "two", {"a": {1: 1.0, 2: 2.0}, "b": {3: 1.0}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["allo", "delta", "merge", "one", "two", "out"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert leaving.value.code == 0
    assert (said["num_changed"], said["num_shared"], said["num_overruled"]) == ("4", "2", "1")
    assert torch.equal(read_delta(Path("out")).values["a"], torch.tensor([1.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("extract", "the changes from"),
        ("apply", "hf://OWNER/NAME"),
        ("merge", "SECOND's is taken"),
        ("export", "weights of Linear layers only"),
        ("push", "HF_TOKEN"),
        ("info", "hf://OWNER/NAME"),
    ],
)
def test_each_command_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["allo", "delta", command, "--help"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0
    assert said in " ".join(capsys.readouterr().out.replace("│", " ").split())
