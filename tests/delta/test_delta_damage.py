"""Every byte of a delta, mask or importance matters: flipped, the file is refused or says the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from allo import delta
from allo.delta.file import Delta
from allo.errors import UserError
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from allo.weights.sparse_file import Profile

pytestmark = pytest.mark.invariant(
    "Every flipped byte of a mask, an importance or a delta is refused or changes nothing."
)

SHAPES = {"a": (3, 4), "b": (5,)}


def write_mask(path: Path, profile: Profile) -> None:
    indices = {"a": torch.tensor([1, 5, 7], dtype=torch.int32), "b": torch.tensor([4], dtype=torch.int32)}
    ParamMask(indices, shapes=SHAPES, metadata={"base_fingerprint": "f" * 8}).save(path, profile=profile)


def write_importance(path: Path, profile: Profile) -> None:
    scores = {"a": torch.arange(12.0), "b": torch.arange(5.0)}
    top = ImportanceMap.top(
        lambda: scores.items(), density=0.3, shapes=SHAPES, metadata={"criterion": "delta"}
    )
    top.save(path, profile=profile)


def write_delta(path: Path, profile: Profile) -> None:
    delta.write_delta(
        path,
        indices={"a": torch.tensor([1, 7], dtype=torch.int32), "b": torch.tensor([4], dtype=torch.int32)},
        values={"a": torch.tensor([0.5, -2.0]), "b": torch.tensor([3.0]).bfloat16()},
        shapes=SHAPES,
        base_hashes={"a": "1" * 8, "b": "2" * 8},
        metadata={"made_by": "test"},
        profile=profile,
    )


def content(found: Delta | ParamMask | ImportanceMap) -> dict[str, Any]:
    """All of it, bit for bit."""
    return {
        key: {name: tensor.view(torch.uint8).tolist() for name, tensor in value.items()}
        if key in ("indices", "values", "scores")
        else value
        for key, value in vars(found).items()
    }


KINDS: dict[str, tuple[Callable[[Path, Profile], None], Callable[[Path], Any]]] = {
    "mask": (write_mask, ParamMask.load),
    "importance": (write_importance, ImportanceMap.load),
    "delta": (write_delta, delta.read_delta),
}


@pytest.mark.parametrize("profile", ["compact", "interop"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flip", [1, 0x80, 0xFF])
def test_each_byte_flipped_is_refused_or_says_the_same(
    tmp_path: Path, kind: str, profile: Profile, flip: int
) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "file.safetensors"
    write(path, profile)
    raw, expected = path.read_bytes(), content(read(path))
    same = 0
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= flip
        path.write_bytes(damaged)
        try:
            found = content(read(path))
        except UserError:
            continue
        assert found == expected, f"byte {place} of {len(raw)}, {raw[place]:#x}"
        same += 1
    assert same < len(raw) / 10


def header_of(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    return json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["allo"])


def rewrite(path: Path, **changes: Any) -> None:
    header = {key: value for key, value in (header_of(path) | changes).items() if value is not None}
    save_file(load_file(path), path, metadata={"allo": json.dumps(header)})


def test_a_value_changed_with_a_tool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    write_delta(path, "interop")
    tensors = load_file(path) | {"a.values": torch.tensor([0.5, 8.5e37])}
    save_file(tensors, path, metadata={"allo": json.dumps(header_of(path))})
    with pytest.raises(
        UserError, match=r"delta\.safetensors: its content does not match the digest .* damaged"
    ):
        delta.read_delta(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": None},
        {"digest": "0" * 64},
        {"digest": 7},
        {"metadata": {"made_by": "another"}},
        {"density": 0.5},
    ],
)
def test_a_header_that_was_edited_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "delta.safetensors"
    write_delta(path, "interop")
    rewrite(path, **changes)
    with pytest.raises(UserError, match="digest"):
        delta.read_delta(path)


def test_both_profiles_have_one_digest(tmp_path: Path) -> None:
    digests = set()
    for profile in ("compact", "interop"):
        write_delta(tmp_path / profile, profile)
        digests.add(header_of(tmp_path / profile)["digest"])
    assert len(digests) == 1


def test_a_file_of_an_older_version_is_read_and_you_are_told_that_it_has_no_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "delta.safetensors"
    write_delta(path, "interop")
    expected = content(delta.read_delta(path))
    capsys.readouterr()
    rewrite(path, digest=None, schema=2)
    assert content(delta.read_delta(path)) == expected
    assert "older version" in (said := capsys.readouterr().err) and "no digest" in said and str(path) in said


def test_an_older_file_that_has_a_digest_is_held_to_it(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    write_delta(path, "interop")
    rewrite(path, schema=2)
    with pytest.raises(UserError, match="digest"):
        delta.read_delta(path)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '{"kind": ' * 3000, '{"kind": "delta", "kind": "delta"}', '{"k": NaN}']
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "delta.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"allo": text})
    for read in (delta.read_delta, ParamMask.load, ImportanceMap.load):
        with pytest.raises(UserError, match=r"delta\.safetensors"):
            read(path)


def test_every_command_refuses_a_delta_with_one_bit_flipped(tmp_path: Path) -> None:
    base, tuned = (
        {"w.weight": torch.arange(12.0).reshape(3, 4)},
        {"w.weight": torch.arange(12.0).reshape(3, 4)},
    )
    tuned["w.weight"][1, 2] = 0.25
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    path, good = tmp_path / "delta.safetensors", tmp_path / "good.safetensors"
    for out in (path, good):
        delta.extract(tmp_path / "base", tmp_path / "tuned", out)
    raw = bytearray(path.read_bytes())
    place = raw.rindex(torch.tensor(0.25).numpy().tobytes())
    raw[place + 3] ^= 1
    path.write_bytes(raw)
    commands: list[Callable[[], object]] = [
        lambda: delta.apply(tmp_path / "base", path, tmp_path / "out"),
        lambda: delta.info(path),
        lambda: delta.merge(good, path, tmp_path / "merged.safetensors"),
        lambda: delta.merge(path, good, tmp_path / "merged.safetensors"),
        lambda: delta.export_shira(tmp_path / "base", path, tmp_path / "out", linear={"w.weight"}),
        lambda: delta.push(path, "some/one"),
    ]
    for command in commands:
        with pytest.raises(UserError, match="digest"):
            command()
    assert not (tmp_path / "out").exists() and not (tmp_path / "merged.safetensors").exists()
