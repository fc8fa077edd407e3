"""Run by torchrun: train the tiny model in each process; rank 0 writes what came out to the file in argv."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from allo.ranks import rank
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from allo.weights import ranks
from tiny import feedback, pairs, trained, weights, wrongs

KINDS = {
    "forget": (ForgetTrainer, wrongs, {}),
    "improve": (ImproveTrainer, pairs, {}),
    "kto": (FeedbackTrainer, feedback, {"loss": "kto", "beta": 0.5, "keep": 0.6}),
    "bco": (ImproveTrainer, pairs, {"loss": "bco", "filter": "random"}),
}


def main(kind: str, folder: Path, size: int, reference: str) -> None:
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor) -> None:
        sent.append(tensor.nbytes)
        all_reduce(tensor)

    ranks.dist.all_reduce = counted
    trainer_class, data, own = KINDS[kind]
    rows = data()[:13]  # the last step has five rows
    trainer = trained(
        trainer_class,
        rows,
        folder / "run",
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
    if rank() == 0:
        history = [row for row in trainer.state.log_history if "loss" in row]
        found = {f"log.{name}": torch.tensor([float(row[name]) for row in history]) for name in history[0]}
        found |= {f"weight.{name}": tensor for name, tensor in weights(trainer.model).items()}
        found["sent"] = torch.tensor(sum(sent))
        found["gradient"] = torch.tensor(4 * trainer.selected.num_selected * trainer.state.global_step)
        found["dense"] = torch.tensor(
            sum(param.nbytes for param in trainer.model.parameters()) * trainer.state.global_step
        )
        save_file(found, folder / "found.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
