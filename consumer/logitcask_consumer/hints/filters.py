"""Task-aware filters of the teacher's layers, made once from a cask's states and the teacher's head.

Shape legend: T positions, D width of the teacher's states, V ids.

The filter of a layer is the matrix F [D, D] that makes the teacher's own head predict the next tokens from its
states: it minimises the cross-entropy of head(F u(h)) with the realised tokens, u(h) of unit size, head frozen. (Stage
1 of TED, arXiv 2210.01351.) F begins as the identity. The order of the data and every step follow from the seed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from logitcask_consumer.data import CaskDataset, Collator, ShardBlockSampler, target_of
from logitcask_consumer.data.hint_rows import decoded_layer
from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.hints.ted import of_unit_size
from logitcask_consumer.losses import CrossEntropy
from logitcask_consumer.run_document import FILTERS_NAME, RunFolderError, explained_writes, share_file, sync

_MADE_FOR: Final = "made_for"
_SEQUENCES: Final = 4
"""Of a step."""


def made_filters(
    dataset: CaskDataset,
    head: LMHead,
    layers: tuple[int, ...],
    *,
    steps: int,
    rate: float,
    seed: int,
    say: Callable[[str], None] = lambda message: None,
) -> dict[int, Tensor]:
    """Make the filters of some layers, float32 [D, D] each.

    Args:
        dataset: with hints of hidden states.
        head: the teacher's.
        layers: of the teacher, among those that the cask has.
        steps: of Adam.
        rate: its learning rate.
        seed: of the order.
        say: receives a sentence for each layer.
    """
    spec = dataset.manifest.capture.hints
    assert spec is not None, "the dataset has hints"
    collator, width = Collator(seq_len=dataset.seq_len), dataset.hint_width
    filters = {layer: nn.Parameter(torch.eye(width)) for layer in layers}
    optimizer = torch.optim.Adam(filters.values(), lr=rate)
    values: list[dict[int, float]] = []
    sampler, order = ShardBlockSampler(dataset.sources, seed=seed), list[int]()
    epoch = 0
    for _ in range(steps):
        if len(order) < _SEQUENCES:
            sampler.set_epoch(epoch)
            order += list(sampler)
            epoch += 1
        batch = collator(dataset.read(order[:_SEQUENCES]))
        del order[:_SEQUENCES]
        target = target_of(batch, sampled_tail=dataset.manifest.capture.mode != "topk")
        step: dict[int, float] = {}
        for layer, matrix_DD in filters.items():
            states_TD = of_unit_size(decoded_layer(batch["hints"], spec.layers.index(layer)))
            filtered_TD = nn.functional.linear(states_TD, matrix_DD)
            loss = distillation_loss(filtered_TD, head, target, [(1.0, CrossEntropy())]).loss / max(target.num_rows, 1)
            torch.autograd.backward(loss)
            step[layer] = float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        values.append(step)
    for layer in layers:
        say(f"ted: filter of layer {layer}: cross-entropy {values[0][layer]:.3f} -> {values[-1][layer]:.3f} nats")
    return {layer: matrix.detach() for layer, matrix in filters.items()}


def save_filters(filters: dict[int, Tensor], folder: Path, made_for: str) -> None:
    """Write the filters into a run's folder, whole or not at all, readable like the files beside them.

    Args:
        filters: of layers.
        folder: of the run.
        made_for: what they follow from, as `load_filters` is asked for it.
    """
    path = folder / FILTERS_NAME
    partial = path.with_suffix(".partial")
    with explained_writes(path, "Free space and give the same command again"):
        matrices = {str(layer): matrix for layer, matrix in filters.items()}
        save_file(matrices, partial, metadata={_MADE_FOR: made_for})
        share_file(partial)
        sync(partial)
        partial.replace(path)
        sync(folder)


def load_filters(folder: Path, layers: tuple[int, ...], made_for: str) -> dict[int, Tensor] | None:
    """The filters of a run's folder; None where it has none, or those of a call for others that never began.

    Args:
        folder: of the run.
        layers: of the teacher.
        made_for: what they must follow from; files of earlier versions do not say.

    Raises:
        RunFolderError: they cannot be read, or are of other layers.
    """
    path = folder / FILTERS_NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_MADE_FOR, made_for) != made_for:
                return None
        filters = {int(name): matrix for name, matrix in load_file(path).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}): remove it, and the filters are made again") from error
    if set(filters) != set(layers):
        raise RunFolderError(
            f"{path} has filters of layers {sorted(filters)}, this run needs {sorted(layers)}: use another folder"
        )
    return filters
