"""One of two processes that train a sharded student with hint projections, whole and in two parts.

Arguments: CASK TEACHER OUTPUT. OUTPUT/checkpoint is what the first part leaves: the student and its optimizer as torch
saves them from many processes, the projections in a file of their own. OUTPUT/resumed-RANK.pt has the gathered
parameters of every run.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from logitcask_consumer.hints.bound import HINTS_NAME
from logitcask_consumer.hints.checkpoints import learned_projections, load_projections, save_projections
from tests.support.consumer.hint_fsdp_worker import hinted_student

STEPS, HALF = 6, 3


class ShardedRun:
    """A student on two processes, with its optimizer."""

    def __init__(self, cask: Path, teacher: Path) -> None:
        self.model, self.loss, self.dataset = hinted_student(cask, teacher)
        mesh = init_device_mesh("cpu", (2,))
        for layer in self.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def train(self, steps: range) -> None:
        for step in steps:
            batch = self.loss.collator(self.dataset.read([(2 * step + dist.get_rank()) % 10]))
            self.loss.value(self.model, batch, 0.0).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def student_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the student and its optimizer; the student's own parameters alone, as its checkpoints are."""
        student, optimizer = get_state_dict(self.model, self.optimizer)
        return {name: value for name, value in student.items() if HINTS_NAME not in name}, optimizer

    def save(self, folder: Path) -> None:
        student, optimizer = self.student_state()
        save({"student": student, "optimizer": optimizer}, checkpoint_id=folder)
        projections = learned_projections(self.model)
        if dist.get_rank() == 0:
            save_projections(projections, folder)
        dist.barrier()

    def resume(self, folder: Path, *, projections: bool = True) -> None:
        student, optimizer = self.student_state()
        load({"student": student, "optimizer": optimizer}, checkpoint_id=folder)
        hints = {name: value for name, value in self.model.state_dict().items() if HINTS_NAME in name}
        set_state_dict(self.model, self.optimizer, model_state_dict={**student, **hints}, optim_state_dict=optimizer)
        if projections:
            load_projections(self.model, folder)

    def parameters(self) -> dict[str, Tensor]:
        """Gathered, by name."""
        return {name: value.full_tensor().detach() for name, value in self.model.named_parameters()}


def main() -> None:
    cask, teacher, output = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    whole = ShardedRun(cask, teacher)
    whole.train(range(STEPS))
    first = ShardedRun(cask, teacher)
    first.train(range(HALF))
    first.save(output / "checkpoint")
    found = {"whole": whole.parameters(), "half": first.parameters()}
    for name, projections in (("resumed", True), ("forgetful", False)):
        second = ShardedRun(cask, teacher)
        second.resume(output / "checkpoint", projections=projections)
        second.train(range(HALF, STEPS))
        found[name] = second.parameters()
    torch.save(found, output / f"resumed-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
