"""One of two processes that shard a student with fully_shard: writes its loss and the gathered gradients of a batch.

Arguments: CASK OUTPUT GROUPS..., where each of GROUPS names how the head is sharded (root, head, tail), or mixed: in
the root's group, with float32 parameters that are gathered in bfloat16. Results go to OUTPUT/GROUPS-RANK.pt.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from logitcask_consumer.data import CaskDataset, Collator, open_casks, target_of
from logitcask_consumer.losses import Objective
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.student.forward import attach
from logitcask_consumer.weights import EntropyTop
from tests.support.consumer.cask_builder import tiny_model


def student(*, tied: bool, dtype: torch.dtype = torch.float64) -> Any:
    return tiny_model(layers=2, seed=3, tie_word_embeddings=tied).to(dtype)


def loss_of(model: Any, cask: Path, sequences: list[int], selection: EntropyTop | None) -> Any:
    """Forward KL summed over some sequences."""
    dataset = CaskDataset(open_casks([cask], tokenizer_fingerprint=None), seq_len=64)
    batch = Collator(seq_len=64)(dataset.read(sequences))
    task = DistillTask(
        target=target_of(batch, sampled_tail=True).to_dtype(torch.float64),
        slots_T=batch["slots"],
        terms=Objective.parse("forward_kl").terms(0.0),
        selection=selection,
        block_rows=7,
    )
    return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)["loss"]


def shard(model: Any, groups: str, mesh: Any) -> None:
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = mixed if groups == "mixed" else MixedPrecisionPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    if groups == "head":
        fully_shard(model.model.embed_tokens, mesh=mesh)
        fully_shard(model.lm_head, mesh=mesh)
    elif groups == "tail":  # as accelerate does with tied weights
        fully_shard([model.model.norm, model.model.embed_tokens, model.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def main() -> None:
    cask, output = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    for groups in sys.argv[3:]:
        torch.save(results(cask, groups, mesh), output / f"{groups}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


def results(cask: Path, groups: str, mesh: Any) -> dict[str, torch.Tensor]:
    """Losses of this process's sequences, and the gradients of all."""
    model = student(tied=groups == "tail", dtype=torch.float32 if groups == "mixed" else torch.float64)
    attach(model)
    shard(model, groups, mesh)
    found: dict[str, torch.Tensor] = {}
    for name, selection in (("all", None), ("chosen", EntropyTop(keep=0.3))):
        loss = loss_of(model, cask, [0, 1] if dist.get_rank() == 0 else [2, 3], selection)
        loss.backward()
        found[name] = loss.detach()
        # FSDP averages over processes, as DDP does.
        gradients = {key: value.grad.full_tensor() * 2 for key, value in model.named_parameters()}
        found |= {f"{name}:{key}": value for key, value in gradients.items()}
        model.zero_grad()
    return found


if __name__ == "__main__":
    main()
