"""DPO through TRL with a PEFT adapter: LoRA (arXiv 2106.09685) and SHiRA (arXiv 2406.13175)."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftConfig, ShiraConfig
from torch import nn
from trl import DPOConfig, DPOTrainer

from allo.console import say
from allo.models.internals import check
from allo.models.load import Model, Tokenizer
from allo.models.rows import PairRow, counted_pairs
from allo.weights.layout import trained_parameters

check(__name__)


class AdapterTrainer(DPOTrainer):
    """TRL's DPO on pairs tokenized by allo; the reference is the model without its adapter.

    `num_dropped` pairs did not fit into `args.max_length` tokens.
    """

    def __init__(
        self,
        model: Model,
        args: DPOConfig,
        pairs: Sequence[PairRow],
        tokenizer: Tokenizer,
        adapter: PeftConfig,
    ) -> None:
        rows, counts = counted_pairs(tokenizer, pairs, max_length=args.max_length)
        self.num_dropped = counts.dropped
        if words := counts.words(args.max_length):
            say(f"improve: {words}")
        super().__init__(
            model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter,
        )

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # already token ids

    def _send_telemetry(self) -> None:
        """Send nothing."""

    @property
    def adapter_bytes(self) -> int:
        """Return the bytes of the adapter's weights and SHiRA's indices."""
        weights = (param for param in self.model.parameters() if param.requires_grad)
        places = (
            indices
            for module in self.model.modules()
            for indices in getattr(module, "shira_indices", {}).values()
        )
        return sum(tensor.nbytes for tensor in (*weights, *places))


def lora(*, rank: int, seed: int) -> PeftConfig:
    """Return LoRA's config on all linear layers but the head."""
    return LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear"
    )


def shira(*, rank: int, seed: int) -> PeftConfig:
    """Return SHiRA's config on all linear layers but the head. Its entries are drawn at random."""
    return ShiraConfig(task_type="CAUSAL_LM", r=rank, random_seed=seed, target_modules="all-linear")


def adapter_rank(model: Model, *, density: float) -> int:
    """Return the r at which r * (rows + columns) over the adapted layers is nearest to `density` of all weights.

    The rank is at least 1, and no adapter has more entries than its layer.
    """
    head = model.get_output_embeddings()
    layers = [m.weight.shape for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    wanted = density * sum(param.numel() for param in trained_parameters(model).values())
    most = min(rows * columns // (rows + columns) for rows, columns in layers)
    return max(1, min(most, round(wanted / sum(map(sum, layers)))))
