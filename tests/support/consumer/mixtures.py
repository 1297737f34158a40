"""Methods and datasets of casks with weights and losses, as a run makes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskSource, open_groups
from logitcask_consumer.training.choose_method import choose_method
from tests.support.consumer.cask_builder import tiny_tokenizer


def mixture(
    paths: Sequence[Path],
    *,
    loss: str = "forward_kl",
    weights: Sequence[float] = (0.7, 0.3),
    losses: Sequence[str | None] = (None, None),
) -> tuple[Any, Any]:
    """The bound method of these casks, and its dataset of sequences of 64."""
    sources = [
        CaskSource(place=path, weight=weight, loss=own)
        for path, weight, own in zip(paths, weights, losses, strict=True)
    ]
    config = TrainConfig(casks=tuple(map(str, sources)), student="x", output=paths[0].parent / "out", loss=loss)
    groups = open_groups(sources, loss=loss)
    casks = [cask for group in groups for cask in group.casks]
    method = choose_method(config, groups, tiny_tokenizer()).bound(casks)
    return method, method.dataset(casks, seq_len=64, overlap=0, packing="best_fit", seed=0)
