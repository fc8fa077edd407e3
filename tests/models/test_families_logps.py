"""Log-probs of every kind of family are those of plain unpadded forward passes: padded, shared, in train mode."""

import pytest
import torch

from allo.errors import UserError
from allo.models.collate import pad
from allo.models.policy import check_head, per_token_logps, shares_prefix
from tiny import in_one_row
from tiny_families import FAMILIES, LIMIT, family_model, ids, plain_logps

WITHOUT_CACHE = {"rwkv", "xlstm", "openai-gpt"}
TRAINED = sorted(FAMILIES.keys() - WITHOUT_CACHE)
TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
# Windows, chunks and rotary limits lie within the longer rows.
ROWS = [
    (ids(5, seed=1), ids(16, seed=2)),
    (ids(11, seed=3), ids(3, seed=4)),
    (ids(2, seed=5), ids(1, seed=6)),
]
# Their weights' tokens see later tokens' segments through states, windows, chunks, or by ALiBi's distances.
NEVER_SHARED = {
    *(
        "gemma2",
        "gpt_oss",
        "bloom",
        "mpt",
        "qwen3_next",
        "qwen3_5_text",
        "lfm2",
        "bamba",
        "zamba2",
        "jamba",
        "nemotron_h",
    ),
    *(
        "granitemoehybrid",
        "falcon_h1",
        "falcon_mamba",
        "mamba2",
        "recurrent_gemma",
        "gemma3n_text",
        "gemma4_text",
    ),
    *("llama4_text", "olmo3", "falcon", "phi3+longrope", "phimoe+longrope"),
}


@pytest.mark.invariant(
    "Log-probs are those of plain unpadded forward passes in every family, also in train mode."
)
@pytest.mark.parametrize("family", TRAINED)
def test_log_probs_are_those_of_plain_forward_passes(family: str) -> None:
    model = family_model(family)
    check_head(model)
    with torch.no_grad():
        expected = [plain_logps(model, *row) for row in ROWS]
        layouts = {"padded": per_token_logps(model, pad(ROWS, pad_id=0))}
        layouts["train"] = per_token_logps(model.train(), pad(ROWS, pad_id=0))
        model.eval()
        if shares_prefix(model):
            (prompt, first), (_, second), _ = ROWS
            sides = in_one_row([(prompt, first, second)])
            layouts["shared"] = per_token_logps(model, sides)
            expected_sides = [plain_logps(model, prompt, side) for side in (first, second)]
    for layout, found in layouts.items():
        for logps, alone in zip(found, expected_sides if layout == "shared" else expected, strict=True):
            torch.testing.assert_close(logps[: len(alone)], alone, **TOLERANCE, msg=f"{layout}: {alone}")
    assert shares_prefix(model) == (family not in NEVER_SHARED)


@pytest.mark.parametrize(
    ("family", "part"), [("bamba", "mamba.out_proj"), ("lfm2", "conv.out_proj"), ("llama", "")]
)
def test_a_model_with_states_never_shares_a_prefix(family: str, part: str) -> None:
    """Even if they matter too little on a few tokens to be noticed."""
    model = family_model(family)
    for name, param in model.named_parameters():
        if part and part in name:
            param.data.zero_()
    if not part:
        assert shares_prefix(model)
        model._is_stateful = True
    assert not shares_prefix(model)


@pytest.mark.parametrize("family", ["qwen3_5_text", "gemma4_text", "deepseek_v3", "gemma2"])
def test_gradients_of_padded_rows_are_those_of_each_row_alone(family: str) -> None:
    model = family_model(family).train()
    weights = list(model.parameters())

    def gradients(rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
        loss = per_token_logps(model, pad(rows, pad_id=0)).sum()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]

    apart = [sum(grads) for grads in zip(*(gradients([row]) for row in ROWS), strict=True)]
    for together, alone in zip(gradients(ROWS), apart, strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * max(1.0, alone.abs().max().item()))


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("recurrent_gemma", "logits_soft_cap"),
        ("falcon_h1", "lm_head_multiplier"),
        ("gemma2", "final_logit_softcapping"),
    ],
)
def test_a_head_whose_scale_or_cap_is_unknown_is_refused(
    family: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in ("_SCALES", "_CAPS"):
        monkeypatch.setattr(f"allo.models.policy.{known}", ())
    with pytest.raises(UserError, match="its logits differ by"):
        check_head(family_model(family))


def test_rows_beyond_the_rotary_limit_are_tried() -> None:
    lengths = [len(prompt) + len(completion) for prompt, completion in ROWS]
    assert min(lengths) <= LIMIT < max(lengths)
