"""Run by torchrun: work on sharded models in these processes; rank 0 writes what came out into the folder in argv."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

import allo
from allo.delta import Delta, patch_of
from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.records import Feedback, Pair
from allo.models.collate import pad
from allo.models.load import Model, check_whole, load_model
from allo.models.policy import completion_distributions, measured_token_logps, per_token_logps
from allo.models.shards import load_shards
from allo.models.start import write_start
from allo.stages.likelihood import likelihood, measured_feedback, measured_pairs
from allo.training.checkpointing import last_sound_checkpoint
from allo.training.locating import locate
from allo.training.result import write_change
from allo.training.run import train
from allo.training.trainer import ImproveTrainer
from allo.weights import selection
from allo.weights.rank_selection import select_over_ranks
from allo.weights.selection import select
from allo.weights.shards import Ranks, interval_of, reshard
from sharded_cases import CASES, CRITERIA, every_third, found, locating, run
from tiny import TOKENIZER, arguments, feedback, pairs


def load(folder: Path, name: str = "tied") -> Model:
    shards = int(os.environ.get("SHARDS", "0")) or None
    return load_shards(folder / name, dtype=torch.float32, device="cpu", num_shards=shards)


def whole_weights(policy: Model) -> dict[str, Tensor]:
    reshard(policy)
    return {name: param.full_tensor() for name, param in policy.named_parameters()}


def case(folder: Path, name: str) -> None:
    """Train, then write the weights and logs, and the model as `save_model` and a run do."""
    policy, num = load(folder, CASES[name].model), dist.get_world_size()
    trainer = run(CASES[name], policy, folder / name, num_ranks=num, parts=3 if num == 3 else 4)
    if name == "improve":
        trainer.save_model(str(folder / "saved"))
        stage = RunFolder(folder / "run")
        if dist.get_rank() == 0:
            (stage.path / "07-improve").mkdir(parents=True)
            stage.start.mkdir()
            write_start(stage, folder / "tied")
        dist.barrier()
        write_change(policy, stage, stage.path / "07-improve", among=trainer.mask.indices, metadata={})
    trainer.selected.release()
    weights = whole_weights(policy)
    if dist.get_rank() == 0:
        save_file(found(trainer, weights), folder / f"{name}.safetensors")


def locates(folder: Path) -> None:
    """Write the mask of each criterion."""
    for criterion in CRITERIA:
        policy = load(folder, "untied")
        before = whole_weights(policy)
        mask = locate(policy, pairs()[:13], **locating(criterion, folder))
        if dist.get_rank() == 0:
            mask.save(folder / f"{criterion}-mask.safetensors")
        after = whole_weights(policy)
        assert all(torch.equal(before[name], after[name]) for name in before), criterion


def reads(folder: Path) -> None:
    """Compare what a sharded model says with a whole one: scores, log-probs, distributions, also in inference mode."""
    policy, whole = load(folder), load_model(folder / "tied", dtype=torch.float32, device="cpu")
    rows = [{"prompt": pair["prompt"], "completion": pair["rejected"]} for pair in pairs()]
    ours, theirs = (allo.score(model, rows, TOKENIZER, scorer="confidence") for model in (policy, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
    batch = pad([([3, 4, 5], [6, 7]), ([8], [9, 10, 11])], pad_id=TOKENIZER.pad_token_id)
    for read in (per_token_logps, measured_token_logps, completion_distributions):
        with torch.inference_mode():
            found, expected = read(policy, batch), read(whole, batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    measures(policy, whole)
    per_token_logps(policy, batch).sum().backward()  # what was gathered in inference mode can still learn
    with pytest.raises(UserError, match="FSDP1, ZeRO-3, tensor parallel"):
        check_whole(fully_shard(whole))


def measures(policy: Model, whole: Model) -> None:
    """Compare what held-out rows say of both models with a change, and see that it is taken out again."""
    mask = every_third(whole)
    random = torch.Generator().manual_seed(0)
    values = {name: 0.1 * torch.randn(len(where), generator=random) for name, where in mask.indices.items()}
    change = Delta(dict(mask.indices), values, mask.shapes, dict.fromkeys(mask.shapes, ""), {})
    rows = [Pair(f"{place}", **pair) for place, pair in enumerate(pairs())]
    labelled = [Feedback(f"{place}", **row) for place, row in enumerate(feedback())]
    before, found = whole_weights(policy), []
    for model in (policy, whole):
        patch, settings = patch_of(model, change), {"beta": 0.2, "max_length": 64, "seed": 0, "size": 8}
        with patch.exchanged():
            of_pairs = measured_pairs(rows, model, TOKENIZER, patch.exchanged, **settings)
            of_rows = measured_feedback(labelled, model, TOKENIZER, patch.exchanged, **settings)
            moved = likelihood(rows, model, TOKENIZER, patch.exchanged, max_length=64)
        found.append(flat({"pairs": of_pairs, "feedback": of_rows, "moved": moved}))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert abs(found[0]["/moved/chosen"]) > 0.01, "the change is small beside the bound"
    after = whole_weights(policy)
    assert all(torch.equal(before[name], after[name]) for name in before)


def flat(found: Any, name: str = "") -> dict[str, Any]:
    """Return a nested record's values by their paths."""
    if not isinstance(found, dict):
        return {name: found}
    return {path: value for key, one in found.items() for path, value in flat(one, f"{name}/{key}").items()}


def ties(folder: Path) -> None:
    """Compare the selection over ranks with that of all entries, with ties in every bit of the key."""
    shapes = {"b": (7, 5), "a": (11,), "c": (1, 3)}
    place, num = dist.get_rank(), dist.get_world_size()
    random = torch.Generator().manual_seed(1)
    many = {name: torch.randint(3, shape, generator=random).float() for name, shape in shapes.items()}
    ones = {name: torch.ones(shape) for name, shape in shapes.items()}
    hashes = selection._hashes

    def few(*given: Any, **more: Any) -> Any:
        return hashes(*given, **more) % 2

    for scores in (many, ones):
        for hashed in (hashes, few):
            selection._hashes = hashed
            for k in (1, 2, 20, 30, 48):
                expected = select(lambda scores=scores: scores.items(), k=k)
                intervals = {name: interval_of(shape, place, num) for name, shape in shapes.items()}
                own = select_over_ranks(
                    lambda scores=scores, intervals=intervals: (
                        (name, first, scores[name].flatten()[first:last])
                        for name, (first, last) in intervals.items()
                    ),
                    k=k,
                    shapes=shapes,
                    ranks=Ranks(place, num),
                )
                assert own.keys() == expected.keys(), (k, own, expected)
                for name, (first, last) in intervals.items():
                    every = expected.get(name, torch.empty(0, dtype=torch.int32))
                    mine = every[(every >= first) & (every < last)]
                    assert name not in own or torch.equal(own[name], mine), (k, name, own[name], mine)
    selection._hashes = hashes


def resumes(folder: Path) -> None:
    """Compare a resumed run with one left alone, after each kind of loss."""

    num, parts = dist.get_world_size(), Ranks.of(load(folder)).num

    def improver(place: str, *callbacks: TrainerCallback) -> ImproveTrainer:
        policy = load(folder)
        sizes = {"per_device_train_batch_size": 4 // num, "gradient_accumulation_steps": 1}
        args = arguments(folder / place, save_strategy="steps", save_steps=2, **sizes)
        rows = pairs()[:13]
        return ImproveTrainer(policy, args, rows, TOKENIZER, mask=every_third(policy), callbacks=[*callbacks])

    alone = improver("alone")
    rows, expected = train(alone), whole_weights(alone.model)
    for kind, stop in {"killed": 3, "damaged": 5}.items():
        with pytest.raises(KeyboardInterrupt):
            train(improver(kind, Stop(stop)))
        dist.barrier()
        if dist.get_rank() == 0:
            if kind == "damaged":
                file = folder / kind / "checkpoint-4" / f"selected-{parts}-of-{parts}.safetensors"
                content = bytearray(file.read_bytes())
                content[-1] ^= 1
                file.write_bytes(content)
            taken = last_sound_checkpoint(folder / kind)
            assert taken is not None and taken.name == "checkpoint-2", (kind, taken)
        dist.barrier()
        second = improver(kind)
        again, weights = train(second), whole_weights(second.model)
        assert [row.get("loss") for row in again] == [row.get("loss") for row in rows], kind
        assert all(torch.equal(weights[name], expected[name]) for name in expected), kind
    if dist.get_rank() == 0:
        save_file(expected, folder / "alone" / "expected.safetensors")


class Stop(TrainerCallback):
    """Stands for a kill of all ranks after the given optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


JOBS: dict[str, Callable[[Path], None]] = {"locate": locates, "reads": reads, "ties": ties, "resume": resumes}


def main(folder: Path, names: list[str]) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    for name in names:
        if name in CASES:
            case(folder, name)
        else:
            JOBS[name](folder)
            if dist.get_rank() == 0:
                (folder / name).touch()
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
