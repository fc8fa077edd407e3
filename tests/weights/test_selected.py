"""Training the compact copy equals training the dense model under a mask, with any stock optimizer."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from allo.errors import UserError
from allo.weights.fingerprints import as_bits
from allo.weights.lean_adamw import LeanAdamW
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights

EQUAL = {"rtol": 0, "atol": 1e-6}
STEPS, MICRO_BATCHES = 5, 2
LR, DECAY, BETAS, EPS = 1e-2, 0.1, (0.9, 0.999), 1e-8
# Each below the gradient's norm in some steps and above it in others.
MAX_NORM, SPARSE_MAX_NORM = 4.0, 2.6
DENSITY = 0.3
VOCABULARY, WIDTH = 12, 6


class TinyModel(nn.Module):
    """Tied embeddings, one block that runs twice, and a bias and norm of one dimension."""

    def __init__(self, *, checkpointing: str = "none") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, 8)
        self.down = nn.Linear(8, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.checkpointing = checkpointing

    def block(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(torch.tanh(self.up(self.norm(hidden))))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for _ in range(2):
            if self.checkpointing == "none":
                hidden = self.block(hidden)
            else:
                hidden = checkpoint(self.block, hidden, use_reentrant=self.checkpointing == "reentrant")
        return self.head(hidden)


def loss_of(model: nn.Module, input_ids: Tensor) -> Tensor:
    logits = model(input_ids[:, :-1]).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten()) / MICRO_BATCHES


def data() -> Tensor:
    """Token ids [steps, micro-batches, 3, 5]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (STEPS, MICRO_BATCHES, 3, 5), generator=generator)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(param.shape) for name, param in model.named_parameters()}


def sparse_mask(model: nn.Module, *, untouched: Sequence[str] = ()) -> ParamMask:
    generator = torch.Generator().manual_seed(2)
    indices = {}
    for name, param in model.named_parameters():
        chosen = torch.rand(param.numel(), generator=generator) < DENSITY
        if name not in untouched:
            indices[name] = chosen.nonzero().squeeze(-1).int()
    return ParamMask(indices, shapes=shapes_of(model))


def lines_mask(model: nn.Module, lines: str, *, untouched: Sequence[str] = ()) -> ParamMask:
    """Whole rows or columns of each matrix, single entries of each vector."""
    generator = torch.Generator().manual_seed(3)
    indices = {}
    for name, param in model.named_parameters():
        grid = torch.arange(param.numel(), dtype=torch.int32).view(len(param), -1)
        grid = grid.T if lines == "columns" and param.ndim == 2 else grid
        chosen = torch.rand(len(grid), generator=generator) < DENSITY
        chosen[1] = True
        if name not in untouched:
            indices[name] = grid[chosen].reshape(-1).sort().values
    return ParamMask(indices, shapes=shapes_of(model))


MASKS = {
    "entries": sparse_mask,
    "rows": functools.partial(lines_mask, lines="rows"),
    "columns": functools.partial(lines_mask, lines="columns"),
}


def lean_adamw(selected: SelectedWeights, *, lr: float = LR, weight_decay: float = DECAY) -> LeanAdamW:
    groups = selected.param_groups(weight_decay=weight_decay)
    return LeanAdamW(groups, selected.walk, lr=lr, betas=BETAS, eps=EPS)


def adamw(selected: SelectedWeights, *, lr: float = LR, weight_decay: float = DECAY) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        selected.param_groups(weight_decay=weight_decay), lr=lr, betas=BETAS, eps=EPS, fused=True
    )


def train(
    model: nn.Module,
    selected: SelectedWeights,
    optimizer: torch.optim.Optimizer,
    batches: Tensor,
    *,
    max_norm: float = MAX_NORM,
) -> list[float]:
    """One optimizer step for each of `batches`; returns the gradient norms."""
    norms = []
    for step in batches:
        for micro in step:
            loss_of(model, micro).backward()
        norms.append(selected.clip_grad_norm_(max_norm).item())
        optimizer.step()
        selected.write_back()
        optimizer.zero_grad()
    return norms


def masked_adamw(model: nn.Module, mask: ParamMask, batches: Tensor) -> dict[str, Tensor]:
    """The oracle: dense fp32 masters, moments and mask; gradients of the model in its own dtype.

    Trains `model` in place and returns the masters.
    """
    params = dict(model.named_parameters())
    chosen = {name: torch.zeros(param.numel(), dtype=torch.bool) for name, param in params.items()}
    for name, indices in mask.indices.items():
        chosen[name][indices.long()] = True
    chosen = {name: flat.view_as(params[name]) for name, flat in chosen.items()}
    master = {name: param.detach().float() for name, param in params.items()}
    m = {name: torch.zeros_like(weight) for name, weight in master.items()}
    v = {name: torch.zeros_like(weight) for name, weight in master.items()}
    for t, step in enumerate(batches, start=1):
        grads = {name: torch.zeros_like(weight) for name, weight in master.items()}
        for micro in step:
            micro_grads = torch.autograd.grad(loss_of(model, micro), list(params.values()))
            for name, grad in zip(params, micro_grads, strict=True):
                grads[name] += torch.where(chosen[name], grad.float(), 0.0)
        norm = torch.cat([grad.view(-1) for grad in grads.values()]).norm()
        for name, param in params.items():
            grad = grads[name] * (SPARSE_MAX_NORM / norm).clamp(max=1)
            m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * grad
            v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * grad**2
            direction = m[name] / (1 - BETAS[0] ** t) / ((v[name] / (1 - BETAS[1] ** t)).sqrt() + EPS)
            decay = DECAY if param.ndim >= 2 else 0.0
            moved = master[name] * (1 - LR * decay) - LR * direction
            master[name] = torch.where(chosen[name], moved, master[name])
            param.data.copy_(master[name])
    return master


def test_a_full_mask_is_torchs_adamw_on_the_dense_model() -> None:
    ours, theirs = TinyModel(), TinyModel()
    selected = SelectedWeights(ours, ParamMask.full(shapes_of(ours)))
    norms = train(ours, selected, adamw(selected), data())
    assert min(norms) < MAX_NORM < max(norms), "clipping must bind in some steps only"

    matrices = [param for param in theirs.parameters() if param.ndim >= 2]
    vectors = [param for param in theirs.parameters() if param.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    for step, norm in zip(data(), norms, strict=True):
        for micro in step:
            loss_of(theirs, micro).backward()
        theirs_norm = nn.utils.clip_grad_norm_(theirs.parameters(), MAX_NORM)
        assert norm == pytest.approx(theirs_norm.item(), rel=1e-5)
        optimizer.step()
        optimizer.zero_grad()
    for (name, param), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(param, other, **EQUAL, msg=name)


# The gradient of whole lines in bf16 is rounded in another order: tests/weights/test_selected_linear.py bounds it.
@pytest.mark.invariant(
    "Training the selected entries equals dense AdamW under that mask, with accumulation, clipping, decay and tied embeddings."
)
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float32, kind) for kind in MASKS] + [(torch.bfloat16, "entries")],
)
def test_a_sparse_mask_is_dense_adamw_under_that_mask(dtype: torch.dtype, kind: str) -> None:
    ours, theirs = TinyModel().to(dtype), TinyModel().to(dtype)
    mask = MASKS[kind](ours, untouched=["norm.bias"])
    selected = SelectedWeights(ours, mask)
    norms = train(ours, selected, adamw(selected), data(), max_norm=SPARSE_MAX_NORM)
    assert min(norms) < SPARSE_MAX_NORM < max(norms), "clipping must bind in some steps only"
    expected = masked_adamw(theirs, mask, data())
    for name, master in selected.masters().items():
        torch.testing.assert_close(master, expected[name].view(-1)[mask.indices[name].long()], **EQUAL)
    for (name, param), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(param, other, rtol=torch.finfo(dtype).eps, atol=1e-6, msg=name)


@pytest.mark.invariant("Unselected weights keep their bits.")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("max_norm", [1e-3, 1e9])
@pytest.mark.parametrize("lean", [False, True])
def test_unselected_weights_keep_their_bits(
    dtype: torch.dtype, weight_decay: float, max_norm: float, lean: bool
) -> None:
    model = TinyModel().to(dtype)
    before = copy.deepcopy(model)
    mask = sparse_mask(model, untouched=["norm.bias"])
    selected = SelectedWeights(model, mask, slots=("ref",), lean=lean)
    optimizer = (lean_adamw if lean else adamw)(selected, weight_decay=weight_decay)
    train(model, selected, optimizer, data(), max_norm=max_norm)
    for (name, param), old in zip(model.named_parameters(), before.parameters(), strict=True):
        changed = (as_bits(param.data) != as_bits(old.data)).view(-1).nonzero().squeeze(-1)
        chosen = mask.indices.get(name, torch.tensor([], dtype=torch.int32))
        assert set(changed.tolist()) <= set(chosen.tolist()), name
        assert len(changed) > 0 or len(chosen) == 0, f"{name} did not train at all"


@pytest.mark.invariant("Optimizer state has k entries a moment.")
def test_the_optimizers_state_has_one_entry_a_selected_weight_and_moment() -> None:
    model = TinyModel()
    mask = sparse_mask(model)
    selected = SelectedWeights(model, mask)
    optimizer = adamw(selected)
    train(model, selected, optimizer, data()[:1])
    assert selected.num_selected == mask.num_selected
    for moment in ("exp_avg", "exp_avg_sq"):
        assert sum(state[moment].numel() for state in optimizer.state.values()) == mask.num_selected
    assert {param.dtype for param in selected.parameters()} == {torch.float32}


@pytest.mark.invariant("No dense gradient outlives its tensor's turn in the backward pass.")
def test_a_backward_pass_leaves_no_dense_gradient_and_holds_one_at_a_time() -> None:
    model = TinyModel()
    living: list[int] = []

    def count(_: Tensor) -> None:
        living.append(sum(param.grad is not None for param in model.parameters()))

    # Registered before SelectedWeights, so that they fire before its own hooks.
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(count)
    selected = SelectedWeights(model, sparse_mask(model, untouched=["up.weight", "up.bias"]))
    loss_of(model, data()[0, 0]).backward()
    assert living == [1] * 4, "four touched tensors, one gradient alive whenever one is ready"
    assert all(param.grad is None for param in model.parameters())
    assert all(gradient.any() for gradient in selected.gradients().values())


def test_untouched_tensors_are_frozen_until_release() -> None:
    model = TinyModel()
    model.norm.bias.requires_grad_(False)
    selected = SelectedWeights(model, sparse_mask(model, untouched=["up.weight"]))
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert frozen == {"up.weight"}
    selected.release()
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert frozen == {"norm.bias"}, "as it was before"
    loss_of(model, data()[0, 0]).backward()
    assert model.up.weight.grad is not None and model.down.weight.grad is not None, "the hooks are gone"


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
def test_activation_checkpointing_gives_the_same_gradient(checkpointing: str, kind: str) -> None:
    """The block runs twice: with re-entrant checkpointing the hook of each of its weights fires twice."""
    plain, checkpointed = TinyModel(), TinyModel(checkpointing=checkpointing)
    mask = MASKS[kind](plain)
    gradients = []
    for model in (plain, checkpointed):
        selected = SelectedWeights(model, mask)
        for micro in data()[0]:
            loss_of(model, micro).backward()
        gradients.append(selected.gradients())
    for name in mask.indices:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], **EQUAL)


def test_fp32_masters_move_where_bf16_weights_swallow_the_update() -> None:
    model = TinyModel().to(torch.bfloat16)
    before = copy.deepcopy(model)
    selected = SelectedWeights(model, sparse_mask(model))
    masters = {name: master.clone() for name, master in selected.masters().items()}
    train(model, selected, adamw(selected, lr=1e-6, weight_decay=0.0), data())
    # Adam moves each weight by about lr a step.
    moved = torch.cat([(master - masters[name]).abs() for name, master in selected.masters().items()])
    assert moved.median() > 1e-6
    large = {name: (param.abs() > 0.1) for name, param in before.named_parameters()}
    for (name, param), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(param[large[name]], old[large[name]]), "bf16 is 2**-11 apart at 0.1"


@pytest.mark.parametrize(
    ("dtype", "lean"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)]
)
def test_saved_and_loaded_it_goes_on_identically(dtype: torch.dtype, lean: bool, tmp_path: Path) -> None:
    make_optimizer = lean_adamw if lean else adamw
    model = TinyModel().to(dtype)
    start = copy.deepcopy(model)
    mask = sparse_mask(model)
    selected = SelectedWeights(model, mask, slots=("ref",), lean=lean)
    optimizer = make_optimizer(selected)
    train(model, selected, optimizer, data()[:2])
    selected.capture("ref")  # not what a fresh one would capture
    save_file(selected.state_dict(), tmp_path / "selected.safetensors")
    moments = copy.deepcopy(optimizer.state_dict())
    train(model, selected, optimizer, data()[2:])

    resumed = SelectedWeights(start, mask, slots=("ref",), lean=lean)
    resumed.load_state_dict(load_file(tmp_path / "selected.safetensors"))
    resumed_optimizer = make_optimizer(resumed)
    resumed_optimizer.load_state_dict(moments)
    train(start, resumed, resumed_optimizer, data()[2:])
    for (name, param), other in zip(model.named_parameters(), start.parameters(), strict=True):
        assert torch.equal(as_bits(param.data), as_bits(other.data)), name
    for name in mask.indices:
        assert torch.equal(selected.masters()[name], resumed.masters()[name])
        assert torch.equal(selected.slot("ref")[name], resumed.slot("ref")[name])


def test_tied_weights_train_under_the_name_that_the_checkpoint_has() -> None:
    """Some checkpoints store the head and leave out the embedding."""
    ours, alias = TinyModel(), TinyModel()
    mask = sparse_mask(ours)
    renamed = {"embed.weight": "head.weight"}
    alias_mask = ParamMask(
        {renamed.get(name, name): indices for name, indices in mask.indices.items()},
        shapes={renamed.get(name, name): shape for name, shape in mask.shapes.items()},
    )
    for model, its_mask in ((ours, mask), (alias, alias_mask)):
        selected = SelectedWeights(model, its_mask)
        assert selected.masters().keys() == its_mask.indices.keys()
        train(model, selected, adamw(selected), data())
    assert ours.head.weight is ours.embed.weight
    for param, other in zip(ours.parameters(), alias.parameters(), strict=True):
        torch.testing.assert_close(param, other, **EQUAL)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"up.weight": (8, 7)}, r"up\.weight is \[8, 7\] there, \[8, 6\] in this model"),
        ({"gate.weight": (8, 6)}, r"gate\.weight is \[8, 6\] there, absent in this model"),
    ],
)
def test_the_mask_of_another_model_is_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    model = TinyModel()
    mask = sparse_mask(model)
    with pytest.raises(UserError, match=message):
        SelectedWeights(model, ParamMask(mask.indices, shapes=dict(mask.shapes) | shapes))
    assert all(param.requires_grad for param in model.parameters()), "the model is left as it was"


def test_a_tied_weight_that_is_stored_twice_counts_by_its_first_name() -> None:
    model = TinyModel()
    mask = sparse_mask(model)
    shapes = dict(mask.shapes) | {"head.weight": (12, 6)}
    selected = SelectedWeights(model, ParamMask(mask.indices, shapes=shapes))
    assert selected.num_selected == mask.num_selected
    both = {**mask.indices, "head.weight": mask.indices["embed.weight"]}
    with pytest.raises(UserError, match=r"entries of head\.weight, which a run does not train"):
        SelectedWeights(TinyModel(), ParamMask(both, shapes=shapes))


def test_a_mask_that_selects_nothing_is_refused() -> None:
    model = TinyModel()
    with pytest.raises(UserError, match="the mask selects no weight"):
        SelectedWeights(model, ParamMask({}, shapes=shapes_of(model)))
