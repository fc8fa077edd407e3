"""Which experts hold the selected weights: counted from names and shapes, however a checkpoint stores them."""

import torch

from allo.report.experts import chosen_among, expert_table
from allo.weights.experts import expert_rows
from allo.weights.param_mask import MaskRow

E, INNER, HIDDEN = 3, 4, 5
GENERATOR = torch.Generator().manual_seed(0)
CHOSEN = torch.rand(2, E, INNER, HIDDEN, generator=GENERATOR) < 0.3  # [layer, expert, ...]
WANTED = [
    MaskRow(str(layer), f"expert {expert}", int(CHOSEN[layer, expert].sum()), INNER * HIDDEN)
    for layer in (0, 1)
    for expert in range(E)
]


def indices(chosen: torch.Tensor) -> torch.Tensor:
    return chosen.reshape(-1).nonzero().squeeze(1).int()


def test_experts_in_tensors_of_their_own_and_in_one_tensor_count_alike() -> None:
    alone = {
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": CHOSEN[layer, expert]
        for layer in (0, 1)
        for expert in range(E)
    }
    whole = {f"model.layers.{layer}.mlp.experts.up_proj": CHOSEN[layer] for layer in (0, 1)}
    granite = {f"model.layers.{n}.block_sparse_moe.input_linear.weight": CHOSEN[n] for n in (0, 1)}
    mixtral = {
        name.replace("mlp", "block_sparse_moe").replace("up_proj", "w1"): one for name, one in alone.items()
    }
    for form in (alone, whole, granite, mixtral):
        shapes = {name: tuple(one.shape) for name, one in form.items()}
        assert expert_rows(shapes, {name: indices(one) for name, one in form.items()}) == WANTED


def test_all_tensors_of_an_expert_are_added_up_with_its_biases() -> None:
    base = "model.layers.0.mlp.experts."
    shapes = {
        f"{base}gate_up_proj": (E, 2, 3),
        f"{base}gate_up_proj_bias": (E, 2),
        f"{base}down_proj": (E, 3, 1),
    }
    found = expert_rows(shapes, {f"{base}gate_up_proj_bias": torch.tensor([0, 5]).int()})
    assert found == [MaskRow("0", f"expert {n}", number, 6 + 2 + 3) for n, number in enumerate((1, 0, 1))]


def test_other_tensors_are_no_experts() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "model.layers.0.mlp.shared_experts.up_proj.weight": (4, 4),
        "model.layers.0.mlp.gate.weight": (E, 4),
        "model.layers.0.mixer.conv1d.weight": (4, 1, 4),
        "transformer.blocks.0.ffn.experts.mlp.w1": (
            8,
            4,
        ),  # of several experts, in an order that no name tells
        "model.layers.0.mlp.experts.empty": (E, 0, 4),
    }
    assert all(row.total == 0 for row in expert_rows(shapes, {}))
    assert len(expert_rows(shapes, {})) == E, "of the last, which is empty"


def rows(number: int, selected: int = 1) -> list[MaskRow]:
    return [MaskRow(str(n // 256), f"expert {n % 256}", selected * (n % 7), 100) for n in range(number)]


def test_the_table_has_the_most_selected_experts_and_their_share() -> None:
    experts = [MaskRow("0", f"expert {n}", number, 200) for n, number in enumerate([0, 60, 0, 30, 10])]
    table = expert_table(experts, selected=200)
    assert table is not None
    assert [row[0].text for row in table.rows][:3] == [
        "layer 0, expert 1",
        "layer 0, expert 3",
        "layer 0, expert 4",
    ]
    assert [cell.value for cell in table.rows[0][1:]] == [60, 200, 0.3]
    assert "3 of 5 experts hold selected weights: 50.0% of all" in table.remark
    assert "the 1 that hold most have 60.0% of these" in table.remark


def test_the_table_does_not_grow_with_the_mixture() -> None:
    small, large = (expert_table(rows(number), selected=10) for number in (20, 20_000))
    assert small is not None and large is not None and len(small.rows) == len(large.rows) == 10
    assert expert_table([], selected=10) is None
    none = expert_table(rows(20, selected=0), selected=0)
    assert none is not None and "0 of 20 experts" in none.remark


def test_a_header_without_patterns_is_not_mentioned() -> None:
    assert chosen_among({"criterion": "warmup", "num_allowed": "3"}) == ""
    said = chosen_among({"include": "linear", "exclude": "a<b>", "num_allowed": "1234"})
    assert said == ", chosen among 1,234 weights (include linear; exclude a<b>)"
