"""Nothing random is on in training: policy and reference see one network, and repeated passes give the same numbers."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from allo.models.collate import pad
from allo.models.load import switch_off_dropout
from allo.models.policy import per_token_logps
from tiny_families import family_model, ids

ROWS = [(ids(5, seed=1), ids(9, seed=2)), (ids(7, seed=3), ids(3, seed=4))]
# Mixtral multiplies by noise; PhiMoE does, too, and draws its experts.
NOISE = {
    "mixtral": {"router_jitter_noise": 0.5},
    "phimoe": {"router_jitter_noise": 0.01, "input_jitter_noise": 0.5},
    "opt": {"dropout": 0.5, "layerdrop": 0.5},
    "gpt_oss": {"attention_dropout": 0.5},
}


def gradient(model: PreTrainedModel) -> list[torch.Tensor]:
    loss = per_token_logps(model, pad(ROWS, pad_id=0)).sum()
    return [
        g for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None
    ]


@pytest.mark.invariant("Dropout, router noise and drawn experts are off in training.")
@pytest.mark.parametrize("family", NOISE)
def test_training_has_the_gradients_of_eval_mode(family: str) -> None:
    model = family_model(family, **NOISE[family])
    switch_off_dropout(model)
    expected = gradient(model)
    before = torch.get_rng_state()
    for _ in range(2):
        for ours, theirs in zip(gradient(model.train()), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn


def test_a_threshold_that_is_called_jitter_is_kept() -> None:
    """PhiMoE's `router_jitter_noise` also decides which experts count, in eval mode, too."""
    model = family_model("phimoe", router_jitter_noise=0.2)
    with torch.no_grad():
        logits = model(torch.tensor([ROWS[0][0]])).logits
        switch_off_dropout(model)
        per_token_logps(model.train(), pad(ROWS, pad_id=0))
        assert torch.equal(model.eval()(torch.tensor([ROWS[0][0]])).logits, logits)


@pytest.mark.parametrize("family", ["llama", "phimoe", "gemma4_text", "qwen3_5_text"])
def test_layers_still_recompute_their_activations(family: str) -> None:
    """In train mode, which is all that is left of it; the gradients are the same."""
    model = family_model(family)
    expected = gradient(model)
    calls: list[nn.Module] = []
    part = next(
        module for name, module in model.named_modules() if name.endswith(("mlp", "block_sparse_moe"))
    )
    part.register_forward_pre_hook(lambda module, _: calls.append(module))
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = gradient(model.train())
    assert len(calls) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("family", ["mixtral", "phimoe", "gpt_oss", "jamba"])
def test_routers_get_no_loss_of_their_own(family: str) -> None:
    """`output_router_logits` adds a load-balancing loss to transformers' own loss, which is not used."""
    plain, balanced = (
        gradient(family_model(family, output_router_logits=on, router_aux_loss_coef=10.0 * on))
        for on in (False, True)
    )
    assert all(map(torch.equal, plain, balanced))


def test_routers_are_trained_like_other_weights() -> None:
    model = family_model("mixtral")
    switch_off_dropout(model)
    per_token_logps(model.train(), pad(ROWS, pad_id=0)).sum().backward()
    routers = [param for name, param in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2 and all(param.grad is not None and param.grad.any() for param in routers)
