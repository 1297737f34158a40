"""A student spread over the processes of a run (FSDP2): each keeps its part of parameters, gradients and optimizer.

With N processes each holds 1/N of every parameter, of its gradient and of the optimizer's state. A group of parameters
is gathered for the forward and the backward call of its module: every block by itself, the head by itself, and what is
left with the whole model. The loss lies within these calls (see `forward`), so that the head's matrix is whole where
the loss reads it, and its gradient is summed over the processes where it is made.
"""

from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from logitcask_consumer.processes import processes
from logitcask_consumer.student.layer_states import blocks_of


def shard_student(model: Any, *, bfloat16: bool = False) -> None:
    """Spread a student over all processes, in place; every process calls it with the same weights.

    Args:
        model: a causal LM that `student.forward.attach` was called on, on its device, in float32.
        bfloat16: gather and multiply in bfloat16; parameters and sums of gradients stay float32.

    Raises:
        ModelError: its layers lie in no list directly under its body.
    """
    # A checkpoint's config says it, and the class has another name from here on.
    model.config.architectures = [type(model).__name__]
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": _mesh(), "mp_policy": mixed if bfloat16 else MixedPrecisionPolicy()}
    for block in blocks_of(model):
        fully_shard(block, **options)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embeddings.weight is not head.weight:  # else both belong to the model's own group: a weight lies in one
        fully_shard(embeddings, **options)
        # Its backward call follows at once: it stays whole until then.
        fully_shard(head, reshard_after_forward=False, **options)
    fully_shard(model, **options)


def is_sharded(model: Any) -> bool:
    """Whether a student's parameters are spread over processes."""
    return isinstance(model, FSDPModule)


def gather_nothing(model: Any) -> None:
    """Let go of what a forward call without a backward call has left gathered, as an evaluation does."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _mesh() -> DeviceMesh:
    own = processes()
    return init_device_mesh(own.device.type, (own.num_processes,))
