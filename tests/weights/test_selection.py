"""Selection equals sorting the concatenation, under one tie rule, in bounded memory."""

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allo.errors import UserError
from allo.weights import key_sample, selection
from allo.weights.selection import num_to_select, select, select_among, select_sampled, stable_hash


def sorted_answer(tensors: dict[str, Tensor], k: int) -> dict[str, list[int]]:
    """The k first entries by (score descending, hash, name, flat index), by a full sort in numpy."""
    rows = [
        (-float(score), int(mixed), name, index)
        for name, tensor in tensors.items()
        for index, (score, mixed) in enumerate(
            zip(tensor.reshape(-1), reference_hash(name, tensor.numel()), strict=True)
        )
    ]
    chosen: dict[str, list[int]] = {}
    for _, _, name, index in sorted(rows)[:k]:
        chosen.setdefault(name, []).append(index)
    return {name: sorted(indices) for name, indices in chosen.items()}


def reference_hash(name: str, num: int, seed: int = 0) -> np.ndarray:
    """splitmix64 in numpy's unsigned arithmetic, its top 32 bits."""
    start = int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")
    x = np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(32)


def selected(tensors: dict[str, Tensor], k: int) -> dict[str, list[int]]:
    result = select(lambda: tensors.items(), k=k)
    assert all(indices.dtype == torch.int32 for indices in result.values())
    return {name: indices.tolist() for name, indices in result.items()}


@pytest.fixture(params=[0, 10, 1 << 20], ids=lambda limit: f"in_memory={limit}")
def _in_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties settled by histograms of all key digits, of some, or by one sort."""
    monkeypatch.setattr(selection, "IN_MEMORY", request.param)
    monkeypatch.setattr(selection, "PIECE", 37)


SMALLEST = math.ldexp(1, -149)
ADVERSARIAL = {
    "bf16 ties": {
        "a": torch.linspace(0, 1, 500).bfloat16().float(),
        "b": torch.linspace(0, 1, 300).bfloat16().float().reshape(3, 100),
    },
    "scales": {name: torch.rand(90) * scale for name, scale in [("a", 1e-8), ("b", 1.0), ("c", 1e3)]},
    "all equal": {"a": torch.full((200,), 0.25), "b": torch.full((99,), 0.25)},
    "zeros": {"a": torch.zeros(50), "b": torch.zeros(50), "c": torch.tensor([-0.0, 0.0, 1.0])},
    "empty and scalar": {"a": torch.empty(0), "b": torch.tensor(2.0), "c": torch.ones(3, 4)},
    "one element": {"a": torch.tensor([7.0])},
    "subnormal": {"a": torch.arange(60) * SMALLEST, "b": torch.arange(60) * SMALLEST},
    "infinite": {"a": torch.tensor([1.0, math.inf, 0.0, torch.finfo(torch.float32).max, math.inf])},
    "one bin": {"a": 1 + torch.arange(300) * 2.0**-23, "b": 1 + torch.arange(300) * 2.0**-23},
}


@pytest.mark.usefixtures("_in_memory")
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_equals_sorting_all_scores(case: str) -> None:
    tensors = ADVERSARIAL[case]
    total = sum(tensor.numel() for tensor in tensors.values())
    for k in sorted({0, 1, total // 20, total // 3, total - 1, total}):
        assert selected(tensors, k) == sorted_answer(tensors, k), f"k = {k}"


@given(
    scores=st.lists(st.floats(0, width=32, allow_infinity=True), min_size=1, max_size=60),
    share=st.floats(0, 1),
    in_memory=st.sampled_from([0, 5, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_any_scores_give_exactly_the_sorted_k(scores: list[float], share: float, in_memory: int) -> None:
    half = len(scores) // 2
    tensors = {"left": torch.tensor(scores[:half]), "right": torch.tensor(scores[half:])}
    k = round(share * len(scores))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "IN_MEMORY", in_memory)
        assert selected(tensors, k) == sorted_answer(tensors, k)


@pytest.mark.invariant("Exactly k weights, whatever the ties; the order of tensors is irrelevant.")
def test_exactly_k_with_hundreds_of_thousands_of_bf16_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "IN_MEMORY", 1000)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 300_000, generator=generator).bfloat16()
    tuned = (base.float() * (1 + 2**-7)).bfloat16()
    scores = (tuned.float() - base.float()).abs()
    k = 30_011
    threshold = scores.reshape(-1).sort(descending=True).values[k]
    assert int((scores == threshold).sum()) > 10_000, "the case must have many ties at the threshold"
    result = select(lambda: [("a", scores[0]), ("b", scores[1])], k=k)
    assert sum(len(indices) for indices in result.values()) == k
    for name, row in [("a", scores[0]), ("b", scores[1])]:
        chosen = torch.zeros(len(row), dtype=torch.bool)
        chosen[result[name].long()] = True
        assert row[chosen].min() >= threshold >= row[~chosen].max()


@pytest.mark.invariant("Exactly k weights, whatever the ties; the order of tensors is irrelevant.")
@pytest.mark.usefixtures("_in_memory")
def test_the_order_of_tensors_is_irrelevant() -> None:
    tensors = {name: torch.arange(100).remainder(3).float() for name in ("x", "a", "m")}
    backwards = dict(reversed(tensors.items()))
    assert selected(tensors, 120) == selected(backwards, 120)


def test_one_hash_for_all_still_gives_exactly_k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_hashes", lambda name, indices, **_: np.zeros(indices.shape, np.uint64))
    monkeypatch.setattr(selection, "IN_MEMORY", 0)
    tensors = {"b": torch.ones(10), "a": torch.ones(10)}
    assert selected(tensors, 12) == {"a": list(range(10)), "b": [0, 1]}


def test_consecutive_pieces_are_one_tensor() -> None:
    scores = torch.rand(1000)
    whole = select(lambda: [("a", scores), ("b", scores)], k=333)
    pieces = [(name, piece) for name in "ab" for piece in torch.split(scores, 170)]
    in_pieces = select(lambda: pieces, k=333)
    assert whole.keys() == in_pieces.keys()
    assert all(torch.equal(whole[name], in_pieces[name]) for name in whole)


def test_a_name_that_comes_back_is_refused() -> None:
    with pytest.raises(AssertionError, match="comes twice"):
        select(lambda: [("a", torch.ones(2)), ("b", torch.ones(2)), ("a", torch.ones(2))], k=1)


def test_selecting_among_the_selected_equals_selecting_directly() -> None:
    tensors = {name: torch.arange(200).remainder(5).float() for name in "ab"}
    top = select(lambda: tensors.items(), k=250)
    entries = [(name, indices, tensors[name][indices.long()]) for name, indices in top.items()]
    for k in (1, 60, 130, 249, 250):
        among = select_among(lambda: entries, k=k)
        assert {name: indices.tolist() for name, indices in among.items()} == selected(tensors, k)


@pytest.mark.parametrize("bad", [math.nan, -1.0, -math.inf])
def test_scores_that_cannot_be_ranked_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match=r"tensor w, flat index 2: .*NaN or negative"):
        select(lambda: [("w", torch.tensor([1.0, 0.0, bad]))], k=1)


def test_a_bad_score_is_found_in_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its place in the tensor, given in pieces, cut into pieces or as a sparse stream."""
    monkeypatch.setattr(selection, "PIECE", 4)
    scores = torch.arange(12.0)
    scores[7] = scores[9] = math.nan
    for pieces in ([("w", scores)], [("w", scores[:5]), ("w", scores[5:])]):
        with pytest.raises(UserError, match="tensor w, flat index 7: "):
            select(lambda pieces=pieces: [("v", torch.ones(3)), *pieces], k=1)
    sparse = [("w", torch.tensor([3, 90], dtype=torch.int32), torch.tensor([1.0, -1.0]))]
    with pytest.raises(UserError, match="tensor w, flat index 90: "):
        select_among(lambda: sparse, k=1)


def test_scores_and_indices_of_another_kind_are_refused() -> None:
    with pytest.raises(AssertionError):
        selection._check("w", 0, np.ones(2))
    with pytest.raises(AssertionError):
        selection._check("w", torch.arange(2), np.ones(2, dtype=np.float32))


def test_a_tensor_too_large_for_32_bit_indices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "LARGEST_BITS", 10)
    monkeypatch.setattr(selection, "PIECE", 4)
    assert len(list(selection.with_starts([("w", torch.ones(10)), ("v", torch.ones(10))]))) == 6
    with pytest.raises(UserError, match="tensor w has over 10 entries"):
        list(selection.with_starts([("v", torch.ones(3)), ("w", torch.ones(11))]))


def test_the_hash_is_splitmix64_of_name_and_index() -> None:
    for name in ("", "model.layers.0.mlp.up_proj.weight"):
        for seed in (0, 7):
            ours = stable_hash(name, torch.arange(5000, dtype=torch.int32), seed=seed)
            np.testing.assert_array_equal(ours.numpy().astype(np.uint64), reference_hash(name, 5000, seed))


def test_ties_spread_evenly_over_tensors_and_positions() -> None:
    """Under equal scores a tenth of every tenth of every tensor is selected, to five deviations."""
    num, density = 50_000, 0.1
    result = select(lambda: [(name, torch.zeros(num)) for name in "abc"], k=round(3 * num * density))
    expected, deviation = num / 10 * density, math.sqrt(num / 10 * density * (1 - density))
    for indices in result.values():
        counts = torch.histc(indices.float(), bins=10, min=0, max=num)
        assert float((counts - expected).abs().max()) < 5 * deviation


@pytest.mark.parametrize(("density", "k"), [(1.0, 1000), (0.05, 50), (0.0014, 1)])
def test_k_is_the_rounded_share(density: float, k: int) -> None:
    assert num_to_select(density, 1000) == k


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, math.nan, math.inf, 1e-9])
def test_impossible_densities_are_refused(density: float) -> None:
    said = "selects none of" if density == 1e-9 else "it must be above 0 and at most 1"
    with pytest.raises(UserError, match=f"density.* {density}.*{said}"):
        num_to_select(density, 1000)


MEASURE = """
import torch
from allo.weights.selection import PIECE, select
# VmHWM: ru_maxrss would begin with the parent's.
peak = lambda: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
for num in (16, 64):
    stream = lambda: (("w", (torch.arange(PIECE) % 251 + i).float()) for i in range(num))
    select(stream, k=1000)
    print(peak() << 10)
"""


@pytest.mark.invariant("Memory does not grow with the model.")
def test_memory_does_not_grow_with_the_model() -> None:
    """48 more pieces of the stream are 192 MiB of scores; the allocator's noise is a third of that."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    few, many = map(int, run.stdout.split())
    assert 0 < few <= many < few + (64 << 20)


@pytest.mark.invariant("A bad sample changes nothing but the time.")
@pytest.mark.parametrize("case", ADVERSARIAL)
@pytest.mark.parametrize(
    "sample",
    [[], [torch.zeros(3)], [torch.tensor([math.inf])], [torch.rand(4000)]],
    ids=["none", "0", "inf", "any"],
)
def test_a_bad_sample_changes_nothing(case: str, sample: list[Tensor]) -> None:
    tensors = ADVERSARIAL[case]
    total = sum(tensor.numel() for tensor in tensors.values())
    for k in (1, total // 3, total):
        found = select_sampled(lambda: tensors.items(), sample=sample, num_entries=total, k=k)
        assert {name: indices.tolist() for name, indices in found.items()} == sorted_answer(tensors, k)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.6])
@pytest.mark.parametrize("scale", ["fine", "coarse", "by row"])
def test_a_fair_sample_needs_one_pass_and_sets_little_aside(
    monkeypatch: pytest.MonkeyPatch, density: float, scale: str
) -> None:
    """Two percent of the entries in pages of 256 of them; coarse scores have a dozen distinct values."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(2000, 1024, generator=generator).abs()
    if scale == "coarse":
        scores = (scores * 4).floor()
    if scale == "by row":
        scores *= (torch.randn(2000, 1, generator=generator) / 2).exp()
    passes, aside = 0, []
    divide = selection.divide

    def counted(*arguments: object) -> object:
        found = divide(*arguments)  # type: ignore[arg-type]
        aside.append(len(found[2]))
        return found

    def tensors() -> list[tuple[str, Tensor]]:
        nonlocal passes
        passes += 1
        return [("w", scores)]

    monkeypatch.setattr(selection, "divide", counted)
    pages = scores.reshape(-1, 256)[25::50]
    k = round(density * scores.numel())
    result = select_sampled(tensors, sample=[pages], num_entries=scores.numel(), k=k)
    assert passes == 1
    # By row the pages differ, and the guess must allow for it: tenfold what independent entries ask for.
    deviation = math.sqrt(density * (1 - density) / pages.numel()) * scores.numel()
    slack = 4 * key_sample.SLACK * scores.numel() / pages.numel()
    assert sum(aside) < 2 * key_sample.WIDTH * deviation * (16 if scale == "by row" else 2) + slack
    whole = select(lambda: [("w", scores)], k=k)
    assert torch.equal(result["w"], whole["w"]) and len(whole["w"]) == k
