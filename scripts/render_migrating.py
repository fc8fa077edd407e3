"""Write docs/migrating.md from the tables by which the trainers take or refuse what TRL's DPOTrainer takes.

python scripts/render_migrating.py            # write the page
python scripts/render_migrating.py --check    # exit with 1 if the page is out of date
"""

import dataclasses
import sys
from pathlib import Path

from transformers import TrainingArguments

from allo.training.arguments import refused_fields
from allo.training.dpo_config import FIELDS, TRL
from allo.training.given import UNSUPPORTED
from allo.training.recording import NUM_TOKENS
from allo.training.trainer import ImproveTrainer
from generated import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "migrating.md"
HEAD = f"""# From TRL's DPOTrainer

Two lines of a script change: the import and the class's name (`examples/from_dpo_trainer.py`, which a test runs).

```python
from allo import ImproveTrainer  # was: from trl import DPOTrainer

trainer = ImproveTrainer(  # was: DPOTrainer(
    model="base",
    args=DPOConfig("out", beta=0.1, learning_rate=5e-6),
    train_dataset=pairs,
)
trainer.train()
```

The loss is TRL's, of the same tokens. Two things differ by default. `mask=0.1`: a tenth of the weights trains, and a
short run on the same pairs locates it first. `keep=0.5`: of a rejected answer, the half of its tokens with the lowest
log-ratios counts. With `mask=1.0, keep=1.0`, every step has the losses of TRL's DPOTrainer.

- The search for the mask runs when the trainer is made, on the rows that it was given, before any training step; it is not counted in
  `max_steps`. The mask is kept in the output folder. Other rows, model, density or arguments of the search make it run again.
- With few weights the same learning rate trains less. Rates of 2 to 5 times that of all weights were best on the laboratory's model
  at 5% to 20% ([what helps](what-helps.md)). For a real model the best rate is not known: on SmolLM2-135M no comparison told rates
  apart ([experiments](experiments.md)). Start with those that `allo align` takes: 5e-5 below a billion weights, above it 5e-6, the published
  one. Then try a third and three times it: `allo align MODEL pairs.jsonl --out runs/1e-5 --set
  improve.training.learning_rate=1e-5 --set improve.training.max_steps=50` for each rate, and `allo report runs/1e-5 runs/5e-5
  --out runs/rates` compares the margins on held-out pairs, with intervals.
- With `keep` below 1, `loss` and `eval_loss` count only the kept tokens, and do not compare with TRL's.
- What a template writes after the end of a turn, such as a line break, is trained on by TRL and not here ([method](method.md)). `logits/*`,
  `entropy`, `mean_token_accuracy` and `num_tokens` then differ from TRL's by these tokens.
- The reference is always the model as given. A different one is not supported. For an adapter's format, see
  `allo delta export --format peft-shira` ([masks and deltas](masks-and-deltas.md)); `allo delta extract` writes a small file of a trained model.

Nothing is ignored: what is not honoured is refused by name before anything is loaded or trained. This page is generated
from the tables that do so, for TRL {TRL}: `python scripts/render_migrating.py`.

"""
HONOURED = {
    "model": "a model, or its folder, hub id or GGUF file: then in bfloat16 if `bf16` is on, otherwise in float32",
    "args": "`DPOConfig` or `TrainingArguments`; None: those of a recipe, which are reported",
    "train_dataset": "rows in any form of [data.md](data.md)",
    "eval_dataset": "rows, or a dict of them: metrics of each under `eval_<name>_`",
    "processing_class": "a tokenizer; None: the model's own, which pads with EOS if it has no pad token",
    "compute_metrics": "as in TRL; logits and ids come from a forward pass of their own",
    "callbacks": "as in transformers",
    "optimizers": "an optimizer of one group of `model.parameters()`; it trains the selected weights",
}
NO_EFFECT = {
    "remove_unused_columns": "columns are known by their names, and others are ignored",
    "dataloader_pin_memory": "nothing is pinned",
    "logging_nan_inf_filter": "a loss that is NaN stops training",
    "fsdp_config": "it says nothing without `fsdp`",
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "resume_from_checkpoint"), "only scripts read it"),
}


def page() -> str:
    """Return the page's Markdown."""
    inherited = [field.name for field in dataclasses.fields(TrainingArguments)]
    refused = refused_fields()
    rest = ", ".join(f"`{name}`" for name in inherited if name not in {**refused, **NO_EFFECT})
    keywords = [(name, "honoured", words) for name, words in HONOURED.items()]
    keywords += [(name, "refused", words) for name, words in UNSUPPORTED.items()]
    metrics = [name for name in ImproveTrainer.metrics if not name.startswith("improve/")]
    fields = [(name, field.fate, field.words) for name, field in FIELDS.items()]
    return (
        HEAD
        + "## Keywords of the trainer\n\n"
        + _table(("keyword", "here", "how, or why not"), keywords)
        + "\n## Fields of DPOConfig\n\nFields that are refused or not needed may keep their defaults.\n\n"
        + _table(("field", "here", "how, or why not"), fields)
        + "\n## Fields of TrainingArguments\n\nThese are refused unless they have their defaults:\n\n"
        + _table(("field", "why"), [(name, refused[name]) for name in inherited if name in refused])
        + "\nBoth values of these do the same:\n\n"
        + _table(("field", "why"), list(NO_EFFECT.items()))
        + f"\nAll others are honoured as transformers reads them, with the defaults of `DPOConfig`: {rest}.\n\n"
        + "Of these, `bf16` needs a model in bfloat16, `optim` an optimizer that works entry by entry, and "
        + "`train_sampling_strategy` is random or sequential.\n"
        + "\n## Metrics\n\nThese have TRL's names and values: "
        + ", ".join(f"`{name}`" for name in [*metrics, NUM_TOKENS])
        + ". Means of tokens are taken over all tokens since the last log; TRL takes the mean of its micro-batches' means.\n"
    )


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *((f"`{name}`", *rest) for name, *rest in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    return write_or_check(PAGE, page(), script="render_migrating.py", arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
