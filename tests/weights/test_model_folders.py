"""One function decides which files hold a folder's weights, and whoever reads weights gives its answer."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

import tiny
from allo import delta
from allo.errors import UserError
from allo.models.load import check_folder, linear_names, load_model, without_weights
from allo.models.reward_model import load_reward_model
from allo.sampling.vllm_engine import _engine
from allo.weights.checkpoints import ADAPTER, Checkpoint, fingerprint, weight_files
from allo.weights.mask_files import mask_from_checkpoints
from commands import run_printed
from model_folders import INDEX, WEIGHTS, copy_of, edit, shards, tensors_of, write

pytestmark = pytest.mark.invariant("One function decides which files of a folder hold its weights.")

Damage = Callable[[Path], None]


def index_says(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)


def both(folder: Path) -> None:
    shards(folder, keep_single=True)


def stray_shard(folder: Path) -> None:
    shards(folder)
    write(folder, {"more.weight": torch.ones(2)}, "model-00003-of-00003.safetensors")


def single_beside_old_shard(folder: Path) -> None:
    write(folder, tensors_of(folder), "model-00001-of-00001.safetensors")


def no_index(folder: Path) -> None:
    shards(folder)
    (folder / INDEX).unlink()


def other_name(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")


def moved(target: str) -> Damage:
    def damage(folder: Path) -> None:
        shards(folder)
        where = json.loads((folder / INDEX).read_text())["weight_map"]
        name, file = next(iter(where.items()))
        (folder / file).rename(folder.parent / "outside.safetensors")
        place = target.replace("PARENT", str(folder.parent))
        index_says(
            folder, json.dumps({"weight_map": {**{n: place for n in where if where[n] == file}, name: place}})
        )

    return damage


def twice_in_two_shards(folder: Path) -> None:
    shards(folder)
    names = json.loads((folder / INDEX).read_text())["weight_map"]
    one, two = sorted(set(names.values()))
    write(folder, dict(load_file(folder / two)) | dict(load_file(folder / one)), two)


def in_a_sub_folder(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / WEIGHTS).rename(folder / "model" / WEIGHTS)


def named_elsewhere(folder: Path) -> None:
    write(folder, tensors_of(folder), "other.safetensors")
    edit(folder, "config.json", transformers_weights="other.safetensors")


def named_as_a_pickle(rename: Callable[[str], str]) -> Damage:
    """Shards under names that do not end with .safetensors: transformers would open them as pickles."""

    def damage(folder: Path) -> None:
        shards(folder)
        where = json.loads((folder / INDEX).read_text())["weight_map"]
        for file in set(where.values()):
            (folder / file).rename(folder / rename(file))
        index_says(folder, json.dumps({"weight_map": {name: rename(file) for name, file in where.items()}}))

    return damage


def link_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "blob")


def a_folder_in_its_place(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def first_shard_for_the_whole(folder: Path) -> None:
    shards(folder)
    edit(folder, "config.json", transformers_weights="model-00001-of-00002.safetensors")


def offsets(first: int, last: int) -> Damage:
    def damage(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header["model.norm.weight"]["data_offsets"] = [first, last]
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])

    return damage


def header(text: bytes, *, length: int | None = None) -> Damage:
    def damage(folder: Path) -> None:
        size = len(text) if length is None else length
        (folder / WEIGHTS).write_bytes(size.to_bytes(8, "little") + text)

    return damage


DAMAGES: list[tuple[Damage, list[str]]] = [
    (both, [WEIGHTS, "model-00001-of-00002.safetensors and 1 more", "twice", "Keep one"]),
    (stray_shard, ["model-00003-of-00003.safetensors is not named in", "download"]),
    (single_beside_old_shard, [WEIGHTS, "model-00001-of-00001.safetensors", "twice"]),
    (no_index, [r"shards \(model-00001-of-00002\.safetensors\)", f"no {INDEX}"]),
    (other_name, ["model.fp16.safetensors"]),
    (in_a_sub_folder, [r"no \.safetensors weights|neither"]),
    (moved("../outside.safetensors"), [INDEX, "'../outside.safetensors'", "no file of the folder"]),
    (moved("PARENT/outside.safetensors"), [INDEX, "no file of the folder"]),
    (twice_in_two_shards, ["tensor", "is also in model-00001-of-00002.safetensors"]),
    (named_elsewhere, ["`transformers_weights`", "'other.safetensors'", "remove the key"]),
    (first_shard_for_the_whole, ["`transformers_weights`", "'model-00001-of-00002.safetensors'"]),
    (named_as_a_pickle(str.upper), [INDEX, "'MODEL-00001-OF-00002.SAFETENSORS'", "pickle"]),
    (named_as_a_pickle(lambda file: file.removesuffix(".safetensors") + ".bin"), [INDEX, "pickle"]),
    (named_as_a_pickle(lambda file: file.removesuffix(".safetensors")), [INDEX, "pickle"]),
    (link_to_nothing, [WEIGHTS, "a link to nothing", "Download"]),
    (a_folder_in_its_place, [WEIGHTS, "is no file", "Download"]),
    (lambda folder: (shards(folder), index_says(folder, "{"))[-1], [INDEX, "not JSON"]),
    (lambda folder: (shards(folder), index_says(folder, "[]"))[-1], [INDEX, "must be a JSON object"]),
    (lambda folder: (shards(folder), index_says(folder, "null"))[-1], [INDEX, "must be a JSON object"]),
    (
        lambda folder: (shards(folder), index_says(folder, '{"weight_map": {}}'))[-1],
        [INDEX, "no valid weight_map"],
    ),
    (
        lambda folder: (shards(folder), index_says(folder, '{"weight_map": {"w": 3}}'))[-1],
        [INDEX, "said to be in 3"],
    ),
    (lambda folder: (shards(folder), index_says(folder, "[" * 9000 + "]" * 9000))[-1], [INDEX, "deep"]),
    (offsets(0, 64), ["header is wrong about tensor", "download"]),
    (offsets(10**15, 10**15 + 64), ["header is wrong about tensor"]),
    (offsets(-64, 0), ["header is wrong about tensor model.norm.weight"]),
    (header(b""), ["truncated or not a safetensors file"]),
    (header(b"[]"), ["not a safetensors file"]),
    (header(b"{}", length=1 << 62), ["truncated"]),
    (
        header(b'{"w": {"dtype": "F4", "shape": [1], "data_offsets": [0, 0]}}'),
        ["tensor w is stored as F4", "dense"],
    ),
    (header(b'{"w": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 0]}}'), ["wrong about tensor w"]),
    (header(b'{"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},"w": 1}'), ["there twice"]),
    (lambda folder: (folder / WEIGHTS).write_bytes(b""), ["truncated"]),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_whoever_reads_weights_refuses_a_folder_that_could_mean_two_things(
    folder: Path, whole: Path, tmp_path: Path, damage: Damage, words: list[str]
) -> None:
    damage(folder)
    readers: list[Callable[[], object]] = [
        lambda: load_model(folder, dtype=torch.float32, device="cpu"),
        lambda: Checkpoint.open(folder),
        lambda: fingerprint(folder),
        lambda: delta.extract(whole, folder, tmp_path / "delta.safetensors"),
        lambda: mask_from_checkpoints(whole, folder, density=0.1, out=tmp_path / "mask.safetensors"),
    ]
    for read in readers:
        with pytest.raises(UserError) as refused:
            read()
        said = str(refused.value)
        assert str(folder) in said
        assert all(re.search(word, said) for word in words), said
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("delta", "mask"))]


@pytest.mark.parametrize("damage", [both, stray_shard, no_index, named_elsewhere])
def test_names_from_the_configuration_are_not_given_for_such_a_folder(folder: Path, damage: Damage) -> None:
    damage(folder)
    for names in (linear_names, lambda folder: without_weights(folder, folder)):
        with pytest.raises(UserError, match=r"model\.safetensors|shards"):
            names(folder)


@pytest.mark.parametrize("damage", [both, stray_shard, no_index])
def test_a_reward_model_is_read_by_the_same_rule(tmp_path: Path, damage: Damage) -> None:
    judge = tiny.reward_model(tmp_path / "judge")
    damage(judge)
    with pytest.raises(UserError, match="judge"):
        load_reward_model(judge, dtype=torch.float32, device="cpu")


def test_what_other_programs_keep_beside_the_weights_is_not_read(folder: Path) -> None:
    expected = tensors_of(folder)
    write(folder, {name: tensor + 9 for name, tensor in expected.items()}, "consolidated.safetensors")
    write(folder, {name: tensor + 9 for name, tensor in expected.items()}, "model.fp16.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "original").mkdir()
    write(folder / "original", expected)
    assert weight_files(folder) == (folder / WEIGHTS,)
    loaded = load_model(folder, dtype=torch.float32, device="cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_an_index_that_names_the_single_file_is_no_second_reading(folder: Path) -> None:
    index_says(folder, json.dumps({"weight_map": dict.fromkeys(tensors_of(folder), WEIGHTS)}))
    assert weight_files(folder) == (folder / WEIGHTS,)
    load_model(folder, dtype=torch.float32, device="cpu")


def test_a_patched_copy_holds_no_weights_of_the_base_in_another_format(folder: Path, tmp_path: Path) -> None:
    """As GPT-2's repository does: whoever opened those would get the base."""
    others = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx", "model.ckpt", "MODEL.GGUF"]
    others += ["flax_model.msgpack.index.json", "model.fp16.safetensors.index.json"]
    tuned = copy_of(folder, tmp_path / "tuned")
    write(tuned, {name: tensor + 1 for name, tensor in tensors_of(folder).items()})
    kept = {file.name for file in folder.iterdir()}
    for name in others:
        (folder / name).write_bytes(b"weights")
    delta.extract(folder, tuned, tmp_path / "delta.safetensors")
    delta.apply(folder, tmp_path / "delta.safetensors", tmp_path / "patched")
    assert {file.name for file in (tmp_path / "patched").iterdir()} == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_of_a_tied_weight_that_differ_are_refused(folder: Path, dtype: torch.dtype) -> None:
    """transformers would load a model with a head of its own, which config.json does not describe."""
    tensors = tensors_of(folder)
    head = tensors["model.embed_tokens.weight"].to(dtype, copy=True)
    head[-1, -1] += 1
    write(folder, tensors | {"lm_head.weight": head})
    for read in (lambda: load_model(folder, dtype=dtype, device="cpu"), lambda: check_folder(folder, folder)):
        with pytest.raises(
            UserError, match=r"embed_tokens\.weight and lm_head\.weight have different values"
        ):
            read()
    edit(folder, "config.json", tie_word_embeddings=False)
    check_folder(folder, folder)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model.fp16.safetensors"])
def test_vllm_is_not_given_a_folder_of_which_it_would_read_other_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = ModuleType("vllm")
    module.LLM = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    assert _engine(folder, seed=0) == {"model": str(folder), "seed": 0}
    write(folder, {"w": torch.ones(1)}, name)
    with pytest.raises(UserError, match=f"vLLM could read {name} in place of {WEIGHTS}.*backend to hf"):
        _engine(folder, seed=0)


def test_links_as_the_hubs_cache_has_them_are_followed(folder: Path) -> None:
    shards(folder)
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("..") / "blobs" / file.name)
    assert len(weight_files(folder)) == 2
    load_model(folder, dtype=torch.float32, device="cpu")


# PEFT reads an attribute of transformers that goes out of use.
pefts = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def adapter(folder: Path, base: Path) -> Path:
    peft = pytest.importorskip("peft")
    model = load_model(base, dtype=torch.float32, device="cpu")
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    tuned.save_pretrained(folder)
    return folder


@pefts
def test_an_adapter_alone_is_refused_and_the_command_given_merges_it(folder: Path, tmp_path: Path) -> None:
    alone = adapter(tmp_path / "adapter", folder)
    with pytest.raises(UserError, match=r"no whole model\. Merge it") as refused:
        load_model(alone, dtype=torch.float32, device="cpu")
    command = str(refused.value).splitlines()[-1].strip()
    assert command.endswith("MERGED")
    merged = tmp_path / "merged"
    run_printed(command.replace("MERGED", str(merged)))
    changed = [
        name
        for name, tensor in tensors_of(merged).items()
        if not torch.equal(tensor, tensors_of(folder)[name])
    ]
    assert changed and all("q_proj" in name for name in changed)
    load_model(merged, dtype=torch.float32, device="cpu")


@pefts
def test_an_adapter_beside_a_whole_model_is_refused_by_every_reader(folder: Path, tmp_path: Path) -> None:
    for file in adapter(tmp_path / "adapter", folder).iterdir():
        if file.name.startswith("adapter"):
            file.rename(folder / file.name)
    for read in (
        lambda: load_model(folder, dtype=torch.float32, device="cpu"),
        lambda: Checkpoint.open(folder),
    ):
        with pytest.raises(UserError, match=rf"adapter \({ADAPTER}\) beside a whole model.*merge"):
            read()
    (folder / ADAPTER).write_text("not JSON")
    with pytest.raises(UserError, match="beside a whole model"):
        load_model(folder, dtype=torch.float32, device="cpu")


def test_an_adapter_of_a_reward_model_is_refused_with_the_classifiers_command(tmp_path: Path) -> None:
    judge = tiny.reward_model(tmp_path / "judge")
    (judge / ADAPTER).write_text('{"task_type": "SEQ_CLS", "base_model_name_or_path": "some/base"}')
    with pytest.raises(UserError, match="AutoModelForSequenceClassification"):
        load_reward_model(judge, dtype=torch.float32, device="cpu")
