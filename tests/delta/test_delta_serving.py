"""A delta for a running vLLM server: the layout that vLLM documents, and a reload over HTTP."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_delta import assert_same_bits, folder_of
from torch import Tensor

from allo.cli import app
from allo.delta import apply, export_patch, extract, read_delta, write_delta
from allo.errors import UserError
from allo.weights.fingerprints import as_bits
from pages import ROOT, blocks
from reload_server import reloading

SHAPES = {"model.embed.weight": (12, 8), "q.weight": (8, 8), "k.weight": (4, 8), "down.weight": (8, 16)}


def weights(seed: int, *, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    return made | {"norm.weight": torch.ones(8, dtype=dtype)}


def changed(tensors: dict[str, Tensor], *, every: int, by: float) -> dict[str, Tensor]:
    """Change some entries of all tensors but the norm: also the first and the last of each."""
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in SHAPES:
        flat = found[name].view(-1)
        flat[::every] *= by
        flat[-1] = -0.0
    return found


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Folders base, one and two, and the deltas one and two of the base."""
    base = weights(0)
    folder_of(tmp_path / "base", base)
    for name, every, by in (("one", 5, 1.5), ("two", 7, 0.25)):
        folder_of(tmp_path / name, changed(base, every=every, by=by), num_shards=2)
        extract(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.delta")
    return tmp_path


def read_without_allo(file: Path) -> dict[str, tuple[Tensor, Tensor, tuple[int, ...]]]:
    """Return (indices, values, full shape) by name, as the documents say to read a patch."""
    with safe_open(file, framework="pt") as opened:
        shapes = json.loads(opened.metadata()["allo"])["shapes"]
        keys = opened.keys()
        names = [key.removesuffix(".indices") for key in keys if key.endswith(".indices")]
        assert {*opened.keys()} == {f"{name}.{part}" for name in names for part in ("indices", "values")}
        return {
            name: (
                opened.get_tensor(f"{name}.indices"),
                opened.get_tensor(f"{name}.values"),
                tuple(shapes[name]),
            )
            for name in names
        }


def served(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Apply a patch in the whole checkpoint's coordinates, one rank, as vLLM describes."""
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, (indices, values, _) in read_without_allo(file).items():
        found[name].view(-1).index_copy_(0, indices.long(), values)
    return found


def served_in_parts(tensors: dict[str, Tensor], file: Path, *, ranks: int) -> dict[str, Tensor]:
    """Apply a patch as vLLM describes for tensor parallelism and fused layers.

    The patch becomes a tensor of the full shape, with NaN in all other places; the loader cuts and fuses it like a
    checkpoint's tensor, and copies what is not NaN.
    """
    whole = {
        name: torch.full(shape, torch.nan, dtype=values.dtype).view(-1).index_copy_(0, indices.long(), values)
        for name, (indices, values, shape) in read_without_allo(file).items()
    }
    found = {}
    for name, tensor in tensors.items():
        dim = 1 if name == "down.weight" else 0
        parts = [part.clone() for part in tensor.chunk(ranks, dim)]
        if name in whole:
            news = whole[name].view(tensor.shape).chunk(ranks, dim)
            parts = [torch.where(new.isnan(), old, new) for old, new in zip(parts, news, strict=True)]
        found[name] = torch.cat(parts, dim)
    return found


def run(arguments: list[str]) -> None:
    app(arguments, standalone_mode=False)


def assert_equal_bits(mine: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert mine.keys() == others.keys()
    for name in mine:
        assert torch.equal(as_bits(mine[name]), as_bits(others[name])), name


@pytest.mark.invariant("A delta for vLLM, applied as vLLM documents it, gives the tuned model bit for bit.")
def test_a_patch_turns_the_served_base_into_the_tuned_model(three: Path) -> None:
    found = export_patch(three / "base", three / "one.delta", three / "patch.safetensors")
    base, tuned = weights(0), changed(weights(0), every=5, by=1.5)
    assert_equal_bits(served(base, three / "patch.safetensors"), tuned)
    assert_equal_bits(served_in_parts(base, three / "patch.safetensors", ranks=2), tuned)
    patch = read_without_allo(three / "patch.safetensors")
    assert patch.keys() == SHAPES.keys()
    for name, (indices, values, shape) in patch.items():
        assert indices.dtype == torch.int32 and indices.dim() == values.dim() == 1 and shape == SHAPES[name]
        assert values.dtype == torch.bfloat16 and bool((indices[1:] > indices[:-1]).all())
    assert found.num_changed == sum(len(indices) for indices, _, _ in patch.values())


def test_entries_that_a_delta_only_touches_are_not_sent(three: Path) -> None:
    """Training may leave a selected weight as it was."""
    delta = read_delta(three / "one.delta")
    base = weights(0)
    everything = {name: torch.arange(base[name].numel(), dtype=torch.int32) for name in delta.indices}
    values = {name: changed(base, every=5, by=1.5)[name].view(-1) for name in everything}
    write_delta(
        three / "wide.delta",
        indices=everything,
        values=values,
        shapes=delta.shapes,
        base_hashes=delta.base_hashes,
        metadata={},
    )
    narrow = export_patch(three / "base", three / "one.delta", three / "narrow")
    wide = export_patch(three / "base", three / "wide.delta", three / "wide")
    assert wide.num_changed == narrow.num_changed
    assert_equal_bits(served(base, three / "wide"), served(base, three / "narrow"))


def test_a_patch_replaces_the_delta_that_the_server_has(three: Path) -> None:
    """Entries of the first delta that the second does not set get the base's values back."""
    one, two = (changed(weights(0), every=every, by=by) for every, by in ((5, 1.5), (7, 0.25)))
    export_patch(three / "base", three / "two.delta", three / "patch", served=three / "one.delta")
    assert_equal_bits(served(one, three / "patch"), two)
    apply(three / "one", three / "patch", three / "again")  # it is a delta of what is served
    assert_same_bits(three / "again", two)
    with pytest.raises(UserError, match="is not the base"):
        apply(three / "base", three / "patch", three / "wrong")


def test_an_empty_delta_takes_the_served_one_out_again(three: Path) -> None:
    one = changed(weights(0), every=5, by=1.5)
    extract(three / "base", three / "base", three / "none.delta")
    export_patch(three / "base", three / "none.delta", three / "patch", served=three / "one.delta")
    assert_equal_bits(served(one, three / "patch"), weights(0))


def test_a_patch_to_what_is_served_already_is_refused(three: Path) -> None:
    with pytest.raises(UserError, match="nothing to send"):
        export_patch(three / "base", three / "one.delta", three / "patch", served=three / "one.delta")
    assert not (three / "patch").exists()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_vllm_would_skip_are_refused(tmp_path: Path, bad: float) -> None:
    """NaN says "unchanged" there, so the server would keep the old weight without a word."""
    base = weights(0)
    tuned = changed(base, every=5, by=2.0)
    tuned["k.weight"].view(-1)[3] = bad
    folder_of(tmp_path / "base", base)
    folder_of(tmp_path / "tuned", tuned)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    with pytest.raises(UserError, match=r"k\.weight.*NaN or infinite"):
        export_patch(tmp_path / "base", tmp_path / "delta", tmp_path / "patch")


def test_integers_are_refused(tmp_path: Path) -> None:
    base = {"w": torch.arange(12, dtype=torch.int8), "v": torch.ones(3)}
    folder_of(tmp_path / "base", base)
    folder_of(tmp_path / "tuned", base | {"w": base["w"] + 1})
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    with pytest.raises(UserError, match=r"tensor w.*int8.*allo delta apply"):
        export_patch(tmp_path / "base", tmp_path / "delta", tmp_path / "patch")


@pytest.mark.parametrize("which", ["the delta", "the served delta"])
def test_another_base_is_refused(three: Path, which: str) -> None:
    folder_of(three / "other", weights(1))
    other = three / "other.delta"
    folder_of(three / "more", changed(weights(1), every=3, by=2.0))
    extract(three / "other", three / "more", other)
    deltas = (other, three / "one.delta") if which == "the delta" else (three / "one.delta", other)
    with pytest.raises(UserError, match="is not the base"):
        export_patch(three / "base", deltas[0], three / "patch", served=deltas[1])
    assert not (three / "patch").exists()


def test_the_command_writes_a_patch(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["delta", "export", str(three / "base"), str(three / "two.delta"), str(three / "patch")]
    run([*place, "--format", "vllm-sparse", "--served", str(three / "one.delta")])
    assert "num_changed" in capsys.readouterr().out
    one, two = (changed(weights(0), every=every, by=by) for every, by in ((5, 1.5), (7, 0.25)))
    assert_equal_bits(served(one, three / "patch"), two)


@pytest.mark.parametrize("format", ["full", "peft-shira"])
def test_only_a_patch_takes_what_is_served(three: Path, format: str) -> None:
    place = ["delta", "export", str(three / "base"), str(three / "two.delta"), str(three / "out")]
    with pytest.raises(UserError, match="--served"):
        run([*place, "--format", format, "--served", str(three / "one.delta")])
    assert not (three / "out").exists()


def test_a_gguf_base_is_refused(three: Path) -> None:
    """A server of a GGUF file has other names and bits than the converted folder."""
    place = ["delta", "export", str(three / "base.gguf"), str(three / "two.delta"), str(three / "out")]
    with pytest.raises(UserError, match="GGUF"):
        run([*place, "--format", "vllm-sparse"])


# Without a data plane: the whole model beside the server, and a reload.

PAGE = "docs/masks-and-deltas.md"


def reload_script(folder: Path) -> Path:
    (script,) = (block.text for block in blocks(PAGE) if block.file == "reload.sh")
    file = folder / "reload.sh"
    file.write_text(script)
    return file


def reload(folder: Path, url: str, delta: str) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"PATH": path, "SERVER": url, "PYTHONPATH": str(ROOT / "src")}
    words = ["bash", str(reload_script(folder)), "base", delta, f"served-{delta}"]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the script calls curl")
def test_the_script_of_the_page_reloads_a_server_with_the_delta(three: Path) -> None:
    with reloading(three / "base") as server:
        done = reload(three, server.url, "one.delta")
        assert done.returncode == 0, done.stderr
        assert_equal_bits(server.weights, changed(weights(0), every=5, by=1.5))
        assert server.paths == ["/collective_rpc", "/reset_prefix_cache"]
        server.fails = (
            "/collective_rpc"  # a server that cannot: the script ends with an error, and asks no further
        )
        done = reload(three, server.url, "two.delta")
        assert done.returncode != 0 and "no weights there" in done.stdout + done.stderr
        assert_equal_bits(server.weights, changed(weights(0), every=5, by=1.5))
        assert server.paths[2:] == ["/collective_rpc"]
