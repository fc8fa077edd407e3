"""The models that the scorers `contrastive` and `right_confidence` ask: the start, fine-tuned on right or wrong answers."""

from collections.abc import Sequence
from pathlib import Path

from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.records import Feedback, Pair
from allo.models.collate import SIDES
from allo.models.start import load_start
from allo.ranks import barrier, from_first, rank
from allo.recipe import Recipe
from allo.tasks.feedback import answer_rows
from allo.tasks.pairing import answer_row
from allo.training.arguments import stage_arguments
from allo.training.checkpointing import keep_tensors, kept_tensors
from allo.training.run import remove_checkpoints, state_bytes, train
from allo.training.trainer import SftTrainer
from allo.weights.layout import Layout, shapes_of


def train_sides(recipe: Recipe, run: RunFolder, sides: Sequence[str] = SIDES) -> int:
    """Fine-tune the start on each side of the pairs, chosen or rejected, and write `05-contrast`.

    Both models see the same prompts equally often. The sides of labelled completions are the good and the bad ones.
    Finished sides are skipped, and an interrupted one is resumed.
    Returns the bytes of training state of one side, as only one is in memory at a time; 0 if no side was left to train.
    """
    missing = from_first(lambda: [side for side in sides if kept_tensors(side_weights(run, side)) is None])
    return max((_train_side(recipe, run, side, side_weights(run, side)) for side in missing), default=0)


def side_weights(run: RunFolder, side: str) -> Path:
    """Return the file of a side's weights: fp32, [shape]."""
    return run.contrast / side / "weights.safetensors"


def _train_side(recipe: Recipe, run: RunFolder, side: str, path: Path) -> int:
    """Train all weights, with fp32 masters, on one answer of every pair, or on the completions with one label."""
    if run.feedback.exists():
        rows = answer_rows(read_jsonl(run.feedback, Feedback), label=side == "chosen")
    else:
        rows = [answer_row(pair, side) for pair in read_jsonl(run.pairs, Pair)]
    path.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_start(recipe, run)
    shapes = shapes_of(model)
    trainer = SftTrainer(
        model,
        stage_arguments(recipe, "score", folder=path.parent, device=model.device),
        rows,
        tokenizer,
        mask=Layout.of(model).full_mask(),
        records=True,
        max_length=recipe.max_length,
    )
    train(trainer)
    masters = trainer.selected.masters()
    if rank() == 0:
        keep_tensors(path, {name: masters[name].reshape(shapes[name]).contiguous() for name in shapes})
        remove_checkpoints(path.parent)
    barrier()
    return state_bytes(trainer)
