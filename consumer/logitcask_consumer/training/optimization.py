"""The optimizer and the schedule of a run, by their names.

    adamw       AdamW (arXiv 1711.05101)
    muon        Muon (arXiv 2502.16982) for the matrices of the layers, AdamW for embeddings, head, norms, biases and
                whatever else is no matrix. Its steps have the size of AdamW's, so learning rate and decay are shared
    adafactor   Adafactor (arXiv 1804.04235) of transformers, with the learning rate of the schedule

    cosine      falls as half a cosine to `min_lr_ratio` of the peak
    wsd         warmup, stable, decay (arXiv 2405.18392): falls as 1 - sqrt over the last share `decay` of the steps
    linear      falls in a straight line from the end of the warmup
    constant    does not fall

All of them rise over `warmup` first. There is one optimizer and one schedule in a run, also over the phases of rounds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.student.layer_states import blocks_of
from logitcask_schemas.errors import ModelError


def optimization_arguments(config: TrainConfig) -> dict[str, Any]:
    """What `DistillConfig` is told of optimizer and schedule."""
    floor = config.min_lr_ratio
    schedules: dict[str, dict[str, Any]] = {
        "cosine": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": floor}},
        "wsd": {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"min_lr_ratio": floor, "decay_type": "1-sqrt"},
            "decay_share": config.decay,
        },
        "linear": {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"min_lr_ratio": floor, "decay_type": "linear"},
            "decay_share": 1.0,
        },
        "constant": {"lr_scheduler_type": "constant_with_warmup"},
    }
    optimizers: dict[str, dict[str, Any]] = {"adamw": {}, "muon": {"muon": True}, "adafactor": {"optim": "adafactor"}}
    return {
        "learning_rate": config.lr,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "adam_beta2": 0.95,
        **optimizers[config.optimizer],
        **schedules[config.scheduler],
    }


def decay_steps(share: float, *, steps: int, warmup: int) -> int:
    """Steps over which a schedule falls: a share of all, and none that belongs to the warmup.

    At least two where there is room, for the first of them is still made at the peak, and the floor is reached when the
    last has been made: a schedule that falls over one step falls in none.

    Args:
        share: of all steps, above 0.
        steps: of the run.
        warmup: steps over which it rises.
    """
    return max(1, min(max(2, round(share * steps)), steps - warmup))


class MuonWithAdamW(Optimizer):
    """Muon for some matrices and AdamW for all else, as one optimizer with one state, to be saved and gone on from."""

    def __init__(
        self,
        matrices: list[nn.Parameter],
        decayed: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Prepare both.

        Args:
            matrices: parameters [R, C] for Muon.
            decayed: parameters for AdamW, with weight decay.
            others: parameters for AdamW without.
            lr: learning rate of both.
            weight_decay: of Muon's parameters and of `decayed`.
            betas: of AdamW.
            eps: of AdamW.
        """
        self._muon = Muon([{"params": matrices}], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(
            [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=lr,
            betas=betas,
            eps=eps,
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Both work on the groups and the state of this optimizer, which a schedule sets and a checkpoint holds."""
        self._muon.param_groups = [group for group in self.param_groups if "ns_steps" in group]
        self._adamw.param_groups = [group for group in self.param_groups if "ns_steps" not in group]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch, which makes new groups and a new state."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()
        return loss


def muon_for(model: Any, args: Any, decayed_names: list[str]) -> MuonWithAdamW:
    """The optimizer of a student.

    Args:
        model: a causal LM, perhaps with adapters.
        args: transformers' training arguments.
        decayed_names: of the parameters that weight decay is for.

    Raises:
        ModelError: no matrix of its layers is trained.
    """
    in_layers = {id(parameter) for parameter in blocks_of(model).parameters() if parameter.ndim == 2}
    names = set(decayed_names)
    matrices, decayed, others = list[nn.Parameter](), list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in in_layers:
            matrices.append(parameter)
        else:
            (decayed if name in names else others).append(parameter)
    if not matrices:
        raise ModelError(
            f"optimizer muon is for the matrices of layers, and none is trained of {type(model).__name__}. Take adamw"
        )
    return MuonWithAdamW(
        matrices,
        decayed,
        others,
        lr=args.learning_rate,
        weight_decay=args.weight_decay,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
