"""One of two processes that shard a student with hint projections: writes its loss and the gathered gradients.

Arguments: CASK TEACHER OUTPUT. Results go to OUTPUT/hints-RANK.pt.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.hints.checkpoints import learned_projections
from logitcask_consumer.methods import TokenMethod
from logitcask_consumer.student.forward import attach
from tests.support.consumer.cask_builder import tiny_model

HINTS = "mse:map=1:2/2:4,projection=learned@0.5 + pkd:map=0:0/2:4@0.3"


def hinted_student(cask: Path, teacher: Path) -> tuple[Any, Any, CaskDataset]:
    """A student in float64 with its hint losses."""
    model = tiny_model(layers=2, seed=3).double()
    attach(model)
    dataset = CaskDataset(open_casks([cask], tokenizer_fingerprint=None), seq_len=64, hints=True)
    loss = TokenMethod(hints=HINTS, teacher=teacher).on(model, dataset)
    return model.double(), loss, dataset


def main() -> None:
    cask, teacher, output = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    model, loss, dataset = hinted_student(cask, teacher)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batch = loss.collator(dataset.read([0, 1] if dist.get_rank() == 0 else [2, 3]))
    value = loss.value(model, batch, 0.0)
    value.loss.backward()
    # FSDP averages over processes, as DDP does.
    gradients = {name: parameter.grad.full_tensor() * 2 for name, parameter in model.named_parameters()}
    saved = {f"saved:{name}": matrix for name, matrix in learned_projections(model).items()}
    torch.save({"loss": value.loss.detach(), **gradients, **saved}, output / f"hints-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
