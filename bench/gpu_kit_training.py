"""The sections of the GPU kit on the trainer's side: the fused losses, and a student's step with its loader.

Shape legend: T positions, D hidden size, V vocabulary.
"""

import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch.nn.functional import cross_entropy

from gpu_kit_run import Kit
from logitcask_consumer.data import CaskDataset, Collator, target_of
from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.head.dense import dense_passes
from logitcask_consumer.losses import Objective, SparseTarget
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.student.forward import attach
from made_up_cask import DOCSTRING_LENGTHS, make_cask
from train_losses import made_up_target

LOSSES = ("forward_kl", "reverse_kl", "js")
SHAPES = ((8192, 2048, 128_256), (8192, 2048, 151_936))
AGREE = 1e-3
"""Relative gap between Triton's passes and torch's, in the gradient of the hidden states."""


def fused_losses(kit: Kit) -> None:
    """Each loss through the fused head, by torch's passes and by Triton's, beside cross-entropy on all logits."""
    for positions, width, vocab in ((96, 16, 400),) if kit.quick else SHAPES:
        labels: dict[str, Any] = {"positions": positions, "hidden": width, "vocab": vocab}
        generator = torch.Generator().manual_seed(0)
        hidden_TD = torch.randn(positions, width, generator=generator).to(kit.device, kit.dtype).requires_grad_()
        weight_VD = torch.randn(vocab, width, generator=generator).mul_(width**-0.5).to(kit.device, kit.dtype)
        weight_VD.requires_grad_()
        target = on_device(made_up_target(positions, vocab), kit.device)

        def step(loss: Callable[[], Any], hidden: torch.Tensor = hidden_TD, weight: torch.Tensor = weight_VD) -> None:
            hidden.grad = weight.grad = None
            loss().backward()

        def plain(
            hidden: torch.Tensor = hidden_TD, weight: torch.Tensor = weight_VD, ids: Any = target.next_ids_R
        ) -> Any:
            return cross_entropy((hidden @ weight.T).float(), ids, reduction="sum")

        others: dict[str, Callable[[], Any]] = {"cross-entropy": plain}
        if kit.device.type == "cuda":
            others["cross-entropy, compiled"] = torch.compile(plain)
        if find_spec("liger_kernel") is not None and kit.device.type == "cuda":
            others["Liger's fused cross-entropy"] = liger(hidden_TD, weight_VD, target.next_ids_R)
        taken = {name: kit.seconds(partial(step, loss), repeats=5) for name, loss in others.items()}
        for name, seconds in taken.items():
            kit.add(name, "ms", [1e3 * value for value in seconds], **labels)
        for name in LOSSES:
            terms, gradients = Objective.parse(name).terms(0.0), {}

            def loss(terms: Any = terms) -> Any:
                return distillation_loss(hidden_TD, LMHead(weight_VD=weight_VD), target, terms).loss  # noqa: B023

            passes: list[Literal["eager", "triton"]] = ["eager"]
            if kit.device.type == "cuda" and find_spec("triton") is not None:
                passes.append("triton")
            for kind in passes:
                with dense_passes(kind):
                    mine = kit.seconds(partial(step, loss), repeats=5)
                assert hidden_TD.grad is not None
                gradients[kind] = hidden_TD.grad.float()
                kit.add(f"{name}, {kind}", "ms", [1e3 * value for value in mine], **labels)
                for other, seconds in taken.items():
                    kit.ratio(f"{name}, {kind} / {other}", mine, seconds, **labels)
            if "triton" in gradients:
                gap = (gradients["triton"] - gradients["eager"]).norm() / gradients["eager"].norm()
                kit.require(float(gap) <= AGREE, f"{name}: Triton's gradient differs by {float(gap):.2g} of its size")


def on_device(target: SparseTarget, device: torch.device) -> SparseTarget:
    """The target with its tensors there."""
    values = {field.name: getattr(target, field.name) for field in fields(target)}
    return replace(target, **moved({name: v for name, v in values.items() if isinstance(v, torch.Tensor)}, device))


def moved(batch: Any, device: torch.device) -> Any:
    """A batch, or a part of one, with its tensors on a device."""
    if isinstance(batch, dict):
        return {name: moved(part, device) for name, part in batch.items()}
    return batch.to(device) if isinstance(batch, torch.Tensor) else batch


def liger(hidden_TD: torch.Tensor, weight_VD: torch.Tensor, next_ids_T: torch.Tensor) -> Callable[[], Any]:
    """Liger's fused linear cross-entropy of the same tensors."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

    made = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda: made(weight_VD, hidden_TD, next_ids_T)


def student_step(kit: Kit) -> None:
    """An optimizer's step of distillation beside one of plain cross-entropy, and the loader's share of it."""
    shape: dict[str, Any] = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192}
    shape |= {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    seq_len, sequences = 2048, 4
    if kit.quick:
        shape = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        shape |= {"num_attention_heads": 2, "num_key_value_heads": 1}
        seq_len, sequences = 512, 2
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, max_position_embeddings=8192, tie_word_embeddings=True)
    with torch.device(kit.device):
        student: Any = transformers.LlamaForCausalLM(config)
    student = student.to(kit.dtype).train()
    attach(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        lengths = list(DOCSTRING_LENGTHS) * (4 * sequences * seq_len // sum(DOCSTRING_LENGTHS))
        cask = make_cask(Path(folder) / "cask", lengths, vocab_size=shape["vocab_size"])
        dataset = CaskDataset([cask], seq_len=seq_len)
        collate, terms = Collator(seq_len=seq_len), Objective.parse("forward_kl").terms(0.0)

        def load() -> tuple[Any, Any]:
            batch = moved(collate(dataset.read(range(sequences))), kit.device)
            return batch, target_of(batch, sampled_tail=True)

        def finish(loss: Any) -> None:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def distil() -> None:
            batch, target = load()
            task = DistillTask(target=target, slots_T=batch["slots"], terms=terms)
            out = student(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
            finish(out["loss"] / len(batch["slots"]))

        ready, _ = load()
        ids, positions = ready["input_ids"], ready["position_ids"]
        labels = torch.full_like(ids, -100).flatten()
        labels[ready["slots"]] = ready["next_ids"].long()
        shifted = labels.view_as(ids)

        def plain() -> None:
            # `labels` is asked for by the forward; the loss uses shift_labels, which are aligned already.
            out = student(input_ids=ids, position_ids=positions, labels=shifted, shift_labels=shifted, use_cache=False)
            finish(out.loss)

        taken, peaks = {}, {}
        for name, work in (("distillation", distil), ("cross-entropy", plain)):
            if kit.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(kit.device)
            taken[name] = kit.seconds(work, repeats=5)
            kit.add(f"step, {name}", "ms", [1e3 * value for value in taken[name]])
            if kit.device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(kit.device)
                kit.add(f"peak memory, {name}", "GiB", [peaks[name] / 2**30])
        kit.ratio("step, distillation / cross-entropy", taken["distillation"], taken["cross-entropy"])
        if peaks:
            kit.add(
                "peak memory, distillation / cross-entropy", "ratio", [peaks["distillation"] / peaks["cross-entropy"]]
            )
        kit.ratio("loader / step", kit.seconds(load, repeats=5), taken["distillation"])
