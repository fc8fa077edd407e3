"""The stage score: every scorer's probabilities, one for each token of a wrong completion."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from allo.errors import UserError
from allo.files.artifacts import RunFolder, write_jsonl
from allo.files.records import TokenScores, Wrong
from allo.stages import locate, score
from allo.tokens import scorers
from allo.tokens.token_credit import edit_scores, random_scores
from locate_setup import EOS, FP32, dense_logps, recipe, with_pairs, wrong_completions
from tiny import NUM_PAIRS, TOKENIZER, model, text, weights


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return with_pairs(tmp_path)


def scored(run: RunFolder, scorer: str, *, criterion: str = "warmup", **own: Any) -> dict[str, TokenScores]:
    if scorer == "implicit":
        locate.run(recipe(criterion, scorer), run)
    score.run(recipe(scorer=scorer, **own), run)
    rows = pq.read_table(run.token_scores, columns=["id", "token_ids", "scores", "weights"]).to_pylist()
    return {row["id"]: TokenScores(**row) for row in rows}


@pytest.mark.parametrize(
    "scorer", ["implicit", "privileged", "confidence", "entropy", "edit", "uniform", "random"]
)
def test_scores_align_with_the_completions_tokens(scorer: str, run: RunFolder) -> None:
    rows = scored(run, scorer)
    assert len(rows) == NUM_PAIRS
    for wrong in wrong_completions():
        row = rows[wrong.id]
        ids = TOKENIZER(wrong.completion, add_special_tokens=False).input_ids
        assert row.token_ids == ids + ([EOS] if wrong.finished else [])
        assert len(row.scores) == len(row.weights) == len(row.token_ids)
        assert all(0 <= value <= 1 for value in row.scores)
        assert row.weights == pytest.approx([1 - value for value in row.scores])


@pytest.mark.parametrize("criterion", ["warmup", "warmup_fused"])
def test_implicit_is_the_log_ratio_of_two_dense_models(criterion: str, run: RunFolder) -> None:
    rows = scored(run, "implicit", criterion=criterion)
    start, warm = (LlamaForCausalLM.from_pretrained(run.start / "model") for _ in range(2))
    warm.load_state_dict(load_file(run.warmup / "weights.safetensors"), strict=False)
    ratios = {}
    for wrong in wrong_completions():
        with torch.no_grad():
            after, before = (
                dense_logps(policy, wrong.prompt, wrong.completion, finished=wrong.finished)
                for policy in (warm, start)
            )
        ratios[wrong.id] = after - before
    scale = torch.cat(list(ratios.values())).square().mean().sqrt()
    assert scale > 0.1
    for name, ratio in ratios.items():
        torch.testing.assert_close(torch.tensor(rows[name].scores), (ratio / scale).sigmoid(), **FP32)


def test_an_interrupted_implicit_scorer_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, start = model(), weights(model())
    warmup = {name: tensor + 1 for name, tensor in start.items()}
    context = scorers.Context(policy, TOKENIZER, max_length=64, seed=0, weights={"warmup": dict(warmup)})

    def killed_in_the_warmup(*_: Any) -> list[list[float]]:
        if torch.equal(next(policy.parameters()), next(iter(warmup.values()))):
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(scorers, "_logps", killed_in_the_warmup)
    with pytest.raises(KeyboardInterrupt):
        scorers.implicit([], context)
    for name, tensor in weights(policy).items():
        assert torch.equal(tensor, start[name]), name
        assert torch.equal(context.weights["warmup"][name].reshape(tensor.shape), warmup[name]), name


@torch.no_grad()
def test_confidence_and_privileged_are_probabilities_without_and_with_the_solution(run: RunFolder) -> None:
    policy = model()
    # The longest row just fits; the solution must not be cut off its beginning for that.
    fits = max(len(TOKENIZER(w.prompt + w.completion).input_ids) for w in wrong_completions()) + 1
    confidence, privileged = (scored(run, name, max_length=fits) for name in ("confidence", "privileged"))
    for wrong in wrong_completions():
        shown = f"A correct solution to the problem below, to check your own against:\n{wrong.solution}\n\n"
        for rows, prompt in ((confidence, wrong.prompt), (privileged, shown + wrong.prompt)):
            expected = dense_logps(policy, prompt, wrong.completion, finished=wrong.finished).exp()
            torch.testing.assert_close(torch.tensor(rows[wrong.id].scores), expected, **FP32)


@torch.no_grad()
def test_entropy_is_that_of_the_models_whole_distribution(run: RunFolder) -> None:
    policy, rows = model(), scored(run, "entropy")
    for wrong in wrong_completions():
        prompt = TOKENIZER(wrong.prompt).input_ids
        logits = policy(input_ids=torch.tensor([prompt + rows[wrong.id].token_ids])).logits[0]
        nats = torch.distributions.Categorical(logits=logits[len(prompt) - 1 : -1]).entropy()
        torch.testing.assert_close(torch.tensor(rows[wrong.id].scores), (-nats).exp(), **FP32)


def test_privileged_without_a_solution_says_what_to_choose(run: RunFolder) -> None:
    first, *_ = wrong_completions()
    write_jsonl(run.wrong, [Wrong(**(vars(first) | {"solution": None, "right": []}))])
    with pytest.raises(UserError, match=r"prompt p0: scorer `privileged`.*Choose another score\.scorer"):
        scored(run, "privileged")


def test_edit_uniform_and_random_need_no_model(run: RunFolder) -> None:
    edit, uniform, random = (scored(run, name) for name in ("edit", "uniform", "random"))
    for wrong in wrong_completions():
        ids = uniform[wrong.id].token_ids
        rights = [
            [*TOKENIZER(right, add_special_tokens=False).input_ids, EOS]
            for right in (wrong.right or [wrong.solution])
        ]
        assert edit[wrong.id].scores == edit_scores(ids, rights)
        assert uniform[wrong.id].scores == [0.0] * len(ids)
        assert random[wrong.id].scores == pytest.approx(random_scores(wrong.id, len(ids), seed=0))
    assert {value for row in edit.values() for value in row.scores} == {0.0, 1.0}


@pytest.mark.parametrize("scorer", ["edit", "privileged"])
def test_a_scorer_that_is_shown_no_solution_scores_as_if_there_were_none(run: RunFolder, scorer: str) -> None:
    """`edit` looks at solutions where no sample is right; `privileged` needs one of either."""
    kept = [each for each in wrong_completions() if each.right or scorer == "edit"]

    def scores(*, known: str | None, shown: bool) -> dict[str, TokenScores]:
        write_jsonl(run.wrong, [replace(each, solution=known) for each in kept])
        block = {"scorer": scorer, "batch_size": 4, "weights": "soft", "solutions": shown}
        score.run(recipe(score=block), run)
        return {row["id"]: row["scores"] for row in pq.read_table(run.token_scores).to_pylist()}

    assert scores(known=text(1, 3), shown=False) == scores(known=None, shown=True)
    assert scores(known=text(1, 3), shown=False) != scores(known=text(1, 3), shown=True)


@pytest.mark.parametrize(
    ("scorer", "own", "share", "warned"),
    [
        ("uniform", {"weights": "indicator"}, 1.0, True),
        ("uniform", {"weights": "soft"}, 1.0, False),  # weighs without marking
        ("random", {"weights": "indicator", "threshold": 0.0}, 0.0, False),
    ],
)
def test_the_share_of_tokens_with_weight_is_said_and_a_large_one_explained(
    run: RunFolder,
    capsys: pytest.CaptureFixture[str],
    scorer: str,
    own: dict[str, Any],
    share: float,
    warned: bool,
) -> None:
    settings = recipe(score={"scorer": scorer, "batch_size": 4, **own})
    score.run(settings, run)
    number = sum(map(len, pq.read_table(run.token_scores)["scores"].to_pylist()))
    said = capsys.readouterr().err
    assert (
        f"score: {round(share * number)} of {number} tokens of the answers to forget have weight ({share:.0%})"
        in said
    )
    assert ("Lower score.threshold" in said) is warned


def test_nothing_wrong_leaves_a_table_of_no_rows(run: RunFolder) -> None:
    write_jsonl(run.wrong, [])
    assert scored(run, "confidence") == {}
    assert pq.read_schema(run.token_scores).names == ["id", "token_ids", "scores", "weights", "tokens"]


def test_scoring_goes_on_where_it_was_killed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(run, "confidence")
    unbroken = run.token_scores.read_bytes()
    run.token_scores.unlink()
    calls: list[int] = []
    original = scorers.per_token_logps

    def killed(policy: Any, batch: Any) -> Tensor:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(batch["input_ids"]))
        return original(policy, batch)

    monkeypatch.setattr(scorers, "per_token_logps", killed)
    with pytest.raises(KeyboardInterrupt):
        scored(run, "confidence")
    assert not run.token_scores.exists()
    monkeypatch.setattr(scorers, "per_token_logps", lambda *a: calls.append(0) or original(*a))
    assert scored(run, "confidence") == whole
    assert run.token_scores.read_bytes() == unbroken
    assert calls == [4, 4, 0, 0]  # of four batches two came before the kill, two after
    assert list(run.path.glob("05-*")) == [run.token_scores]
