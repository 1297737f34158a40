"""What must hold of optimizer, evaluations and quantised layers of a run, with what is said where it does not."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from logitcask_schemas.local_paths import not_utf8, url_in

if TYPE_CHECKING:
    from logitcask_consumer.config import TrainConfig

Optimizer = Literal["adamw", "muon", "adafactor"]
Scheduler = Literal["cosine", "wsd", "linear", "constant"]
Rule: TypeAlias = tuple[bool, str]
"""Whether it holds, and what is said where it does not."""
DECAY: Final = 0.2
"""Share of the steps over which `wsd` falls, where it was not given."""
MIN_LR_RATIO: Final = 0.1
"""How far schedules fall, where it was not given."""


def choices(literal: Any) -> str:
    """The values of a Literal, for a message."""
    return " or ".join(get_args(literal))


def utf8_rules(**places: Path | str | None) -> list[Rule]:
    """A path that is no UTF-8 is told before any work is done."""
    said = {name: not_utf8(place) for name, place in places.items() if place is not None}
    return [
        (
            text is None,
            f"{name} {text} is a path that is no UTF-8, where models and JSON cannot be kept: name another, or rename "
            "its folder",
        )
        for name, text in said.items()
    ]


def local_rules(**places: Path | str | None) -> list[Rule]:
    """What a run writes lies on this machine: of the address of an object store, `Path` would make a folder here."""
    urls = {name: url_in(place) for name, place in places.items() if place is not None}
    return [
        (url is None, f"{name} must be a folder of this machine, got {url}: name one, and copy from there")
        for name, url in urls.items()
    ]


def quantization_rules(config: "TrainConfig") -> list[Rule]:
    """What does not go with quantised layers, with what is said where it is asked for."""
    quantized = config.quantize is not None
    return [
        (
            not (quantized and config.lora is not None),
            "lora does not go with quantize: adapters that are merged move the weights off what was rounded. Leave "
            "one of them out",
        ),
        (
            not (quantized and config.fsdp),
            "fsdp does not go with quantize: it gives layers their weights in the precision of the forward pass, "
            "and they are rounded from float32. Leave fsdp out",
        ),
        (quantized or not config.save_quantized, "save_quantized is for quantised students: give quantize too"),
        (
            not config.save_quantized or config.save_dtype == "float32",
            "save_quantized keeps float32 beside the integers, as it was trained: leave save_dtype out",
        ),
    ]


def optimization_rules(config: "TrainConfig") -> list[Rule]:
    """What must hold of optimizer and schedule, with what is said where it does not."""
    return [
        (0 < config.lr < math.inf, f"lr must be positive and finite, got {config.lr}"),
        (
            0 <= config.weight_decay < math.inf,
            f"weight_decay must be at least 0 and finite, got {config.weight_decay}",
        ),
        (config.max_grad_norm > 0, f"max_grad_norm must be positive, got {config.max_grad_norm}"),
        (0.0 <= config.warmup < 1.0, f"warmup must be at least 0 and below 1, got {config.warmup}"),
        (0.0 <= config.min_lr_ratio <= 1.0, f"min_lr_ratio must lie between 0 and 1, got {config.min_lr_ratio}"),
        (config.optimizer in get_args(Optimizer), f"optimizer must be {choices(Optimizer)}, got {config.optimizer!r}"),
        (config.scheduler in get_args(Scheduler), f"scheduler must be {choices(Scheduler)}, got {config.scheduler!r}"),
        (
            config.scheduler != "wsd" or (config.decay > 0.0 and config.decay + config.warmup <= 1.0),
            f"decay must be above 0, and together with warmup at most 1, got {config.decay} and {config.warmup}",
        ),
        (
            config.scheduler == "wsd" or config.decay == DECAY,
            f"decay is the share over which wsd falls, scheduler is {config.scheduler}: take wsd, or leave decay out",
        ),
        (
            config.scheduler != "constant" or config.min_lr_ratio == MIN_LR_RATIO,
            "min_lr_ratio says how far the learning rate falls, and it does not with scheduler constant: take "
            "another, or leave min_lr_ratio out",
        ),
        (
            not config.fsdp or config.optimizer == "adamw",
            f"optimizer {config.optimizer} reads whole matrices, and fsdp spreads them over processes. Take adamw, "
            "or leave fsdp out",
        ),
    ]


def evaluation_rules(config: "TrainConfig") -> list[Rule]:
    """What must hold of evaluations on held-out casks, with what is said where it does not."""
    least_one = {"eval_every": config.eval_every, "eval_documents": config.eval_documents, "patience": config.patience}
    asked = {**least_one, "load_best": config.load_best or None, "min_improvement": config.min_improvement or None}
    named = ", ".join(name for name, value in asked.items() if value is not None)
    return [
        *(
            (value is None or value >= 1, f"{name} must be at least 1, got {value}")
            for name, value in least_one.items()
        ),
        (bool(config.eval_casks) or not named, f"{named} needs held-out documents: name them with eval_cask"),
        (
            0.0 <= config.min_improvement < math.inf,
            f"min_improvement must be at least 0 and finite, got {config.min_improvement}",
        ),
        (
            not config.min_improvement or config.patience is not None,
            "min_improvement says what patience waits for: give patience too, or leave min_improvement out",
        ),
    ]
