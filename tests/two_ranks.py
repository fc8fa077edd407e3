"""Train the tiny model in each process of torchrun, once a case; rank 0 writes the results into the folder in argv."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from allo.ranks import rank
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from allo.weights import ranks
from tiny import feedback, pairs, pairs_of_prompts, trained, weights, wrongs

KINDS = {
    "forget": (ForgetTrainer, wrongs, {}),
    "groups": (ImproveTrainer, pairs_of_prompts, {"group": "prompt"}),
    "improve": (ImproveTrainer, pairs, {}),
    "kto": (FeedbackTrainer, feedback, {"loss": "kto", "beta": 0.5, "keep": 0.6}),
    "bco": (ImproveTrainer, pairs, {"loss": "bco", "filter": "random"}),
}
CASES = (
    ("improve", "swap"),
    ("forget", "swap"),
    ("improve", "precomputed"),
    ("groups", "swap"),
    ("bco", "swap"),
    ("kto", "swap"),
)


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Yield a list that receives the bytes of each tensor that the trainers send."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor) -> None:
        sent.append(tensor.nbytes)
        all_reduce(tensor)

    ranks.dist.all_reduce = counted
    try:
        yield sent
    finally:
        ranks.dist.all_reduce = all_reduce


def trained_as(kind: str, reference: str, folder: Path, *, size: int) -> dict[str, Tensor]:
    """Train on `size` rows a process and micro-batch; return the logs, the weights and the bytes sent."""
    trainer_class, data, own = KINDS[kind]
    with counted_bytes() as sent:
        trainer = trained(
            trainer_class,
            data()[:13],  # the last step has five rows
            folder / f"{kind}-{reference}",
            own=own | {"reference": reference},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            optim="sgd",
            learning_rate=0.3,
        )
    digest = torch.stack([param.double().sum() for param in trainer.model.parameters()])
    if dist.is_initialized():
        others = [torch.empty_like(digest) for _ in range(dist.get_world_size())]
        dist.all_gather(others, digest)
        assert all(torch.equal(digest, other) for other in others), "the ranks' weights differ"
    history = [row for row in trainer.state.log_history if "loss" in row]
    found = {f"log.{name}": torch.tensor([float(row[name]) for row in history]) for name in history[0]}
    found |= {f"weight.{name}": tensor for name, tensor in weights(trainer.model).items()}
    found["sent"] = torch.tensor(sum(sent))
    found["gradient"] = torch.tensor(4 * trainer.selected.num_selected * trainer.state.global_step)
    found["dense"] = torch.tensor(
        sum(param.nbytes for param in trainer.model.parameters()) * trainer.state.global_step
    )
    return found


def main(folder: Path) -> None:
    for kind, reference in CASES:
        found = trained_as(kind, reference, folder, size=2)
        if rank() == 0:
            save_file(found, folder / f"{kind}-{reference}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
