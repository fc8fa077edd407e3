"""The compared systems: TRL, PEFT through TRL, and the arithmetic of the released optimizer."""

from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, ShiraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from allo.baselines.adapters import adapter_rank
from benchmarks.speed.work import BETA, LEARNING_RATE, SEED, Build, Run, Work

LORA_RANK = 64


def trl(work: Work, policy: PreTrainedModel, folder: Path) -> Run:
    """Train every weight, with a second model as the reference."""
    return _run(_trainer(work, policy, folder, ref_model=work.load_policy()))


def trl_precomputed(work: Work, policy: PreTrainedModel, folder: Path) -> Run:
    """Train every weight, with the reference's log-probs computed before the first step."""
    return _run(_trainer(work, policy, folder, precompute_ref_log_probs=True))


def trl_lora(work: Work, policy: PreTrainedModel, folder: Path) -> Run:
    """Train adapters of rank 64 on all linear layers; the reference is the model without them."""
    adapters = LoraConfig(
        task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear"
    )
    return _run(_trainer(work, policy, folder, peft_config=adapters))


def trl_shira(work: Work, policy: PreTrainedModel, folder: Path) -> Run:
    """Train sparse adapters at random entries of all linear layers, about `density` of all weights together."""
    adapters = ShiraConfig(
        task_type="CAUSAL_LM",
        r=adapter_rank(policy, density=work.density),
        random_seed=SEED,
        target_modules="all-linear",
    )
    return _run(_trainer(work, policy, folder, peft_config=adapters))


def released(work: Work, policy: PreTrainedModel, folder: Path) -> Run:
    """Train with dense moments and a dense mask, each as large as the model, and a second model as the reference."""
    torch.manual_seed(SEED)
    masks = {
        param: (torch.rand(param.shape, device=param.device) < work.density).to(param.dtype)
        for param in policy.parameters()
    }
    optimizer = MaskedAdamW(masks, lr=LEARNING_RATE, weight_decay=work.weight_decay)
    trainer = _trainer(work, policy, folder, ref_model=work.load_policy(), optimizers=(optimizer, None))
    num_trained = sum(int(mask.count_nonzero()) for mask in masks.values())
    return Run(trainer, num_trained, trainer.save_model)


BASELINES: dict[str, Build] = {
    "TRL": trl,
    "TRL, precomputed reference": trl_precomputed,
    "TRL + LoRA": trl_lora,
    "TRL + SHiRA": trl_shira,
    "released arithmetic": released,
}


def _trainer(
    work: Work,
    policy: PreTrainedModel,
    folder: Path,
    *,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    optimizers: tuple[torch.optim.Optimizer | None, None] = (None, None),
    precompute_ref_log_probs: bool = False,
) -> DPOTrainer:
    config = DPOConfig(
        output_dir=str(folder),
        bf16=False,  # the model itself is in bf16
        beta=BETA,
        max_length=work.max_length,
        precompute_ref_log_probs=precompute_ref_log_probs,
        **work.training_settings(),
    )
    return DPOTrainer(
        policy,
        ref_model=ref_model,
        args=config,
        train_dataset=Dataset.from_list(work.load_pairs()),
        processing_class=work.load_tokenizer(),
        peft_config=peft_config,
        optimizers=optimizers,
    )


def _run(trainer: DPOTrainer) -> Run:
    trained = sum(param.numel() for param in trainer.model.parameters() if param.requires_grad)
    return Run(trainer, trained, trainer.save_model)


class MaskedAdamW(torch.optim.Optimizer):
    """AdamW like the released code: moments of every weight, then set to zero by the mask.

    masks: parameter -> 0 or 1 for each entry, in the parameter's shape and dtype. Weight decay is not masked, a fault
    of the released code that is kept here (the cost is the same).
    """

    def __init__(
        self,
        masks: dict[nn.Parameter, Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._masks = masks
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(list(masks), settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self._update(param, **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")})

    def _update(
        self, param: nn.Parameter, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        state, mask, grad = self.state[param], self._masks[param], param.grad
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        state["step"] += 1
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.mul_(betas[0]).add_(grad, alpha=1 - betas[0]).mul_(mask)
        second.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1]).mul_(mask)
        scale = (1 - betas[1] ** state["step"]) ** 0.5
        param.mul_(1 - lr * weight_decay)
        param.addcdiv_(
            first, second.sqrt().div_(scale).add_(eps), value=-lr / (1 - betas[0] ** state["step"])
        )
