"""Several methods in one run, each on casks of its own: several teachers, or several losses, with a weight for each.

The loss of a step is the sum over all parts of weight times loss, divided by what the step counts times the mean weight
of an epoch's positions. So a weight is that of each position, in whatever steps it is trained; dividing by a step's own
weights would take the weight away from a step that has positions of one part only.

Where parts hold records of different teachers for the same documents, `forward_kl` and `cross_entropy`, which are
linear in the teacher's probabilities, have the gradient of the loss to the teachers' mixture, with these weights; other
losses have the weighted sum of the gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from logitcask_consumer.data import MixedDataset, Packing
from logitcask_consumer.methods.method import BatchLoss, BatchValue, Method
from logitcask_schemas.cask import Cask

_MEANS: Final = ("kd", "ce", "kl", "teacher_entropy")
"""Metrics of which a mixture has the mean over its parts, where all have them and all have one loss."""
_OF_ALL_LOSSES: Final = ("ce", "teacher_entropy")
"""Those that mean the same whatever the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixturePart:
    """One method of a mixture."""

    method: Method
    weight: float
    """Above 0."""
    loss: str
    """Of the method, as it was written; a resumed run must have the same."""
    label: str
    """For metrics and messages."""
    num_casks: int
    """How many of the casks, in their order, are its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureMethod:
    """Several methods, each on casks of its own, a `Method`."""

    parts: tuple[MixturePart, ...]

    def bound(self, casks: Sequence[Cask]) -> Self:
        """Each method for its own casks; errors as theirs."""
        return replace(
            self, parts=tuple(replace(part, method=part.method.bound(own)) for part, own in self._split(casks))
        )

    def binding(self) -> dict[str, Any]:
        """Weights and losses, of how many casks each, and what the methods bind."""
        return {
            "mixture": [
                {"casks": part.num_casks, "weight": part.weight, "loss": part.loss, **part.method.binding()}
                for part in self.parts
            ]
        }

    def dataset(
        self, casks: Sequence[Cask], *, seq_len: int, overlap: int, packing: Packing, seed: int
    ) -> MixedDataset:
        """The sequences of all parts; errors as theirs."""
        return MixedDataset(
            [
                part.method.dataset(own, seq_len=seq_len, overlap=overlap, packing=packing, seed=seed)
                for part, own in self._split(casks)
            ]
        )

    def prepared(self, dataset: MixedDataset, folder: Path, say: Callable[[str], None]) -> Self:
        """Each method with what it needs."""
        self._require_own(dataset)
        parts = zip(self.parts, dataset.parts, strict=True)
        return replace(
            self, parts=tuple(replace(part, method=part.method.prepared(own, folder, say)) for part, own in parts)
        )

    def check(self, model: Any, dataset: MixedDataset) -> None:
        """Refuse a student that does not fit one of the parts.

        Raises:
            TypeError: the dataset is not one of this method's.
        """
        self._require_own(dataset)
        for part, own in zip(self.parts, dataset.parts, strict=True):
            part.method.check(model, own)

    def notes(self, dataset: MixedDataset, model: Any) -> list[str]:
        """What each part counts, and what its method has to say."""
        drawn = zip(self.weights_on(dataset), dataset.drawn_positions, strict=True)
        weighted = [weight * positions for weight, positions in drawn]
        lines = []
        for part, own, share in zip(self.parts, dataset.parts, weighted, strict=True):
            lines.append(
                f"{part.label}: {own.num_positions:,} positions of {own.manifest.teacher.model}, weight "
                f"{part.weight:g}, loss {part.loss}: {share / sum(weighted):.1%} of what is trained"
            )
            lines += [f"{part.label}: {note}" for note in part.method.notes(own, model)]
        return lines

    def on(self, model: Any, dataset: MixedDataset) -> "MixtureBatchLoss":
        """The losses of a student on all parts; errors as `check`."""
        self._require_own(dataset)
        losses = [part.method.on(model, own) for part, own in zip(self.parts, dataset.parts, strict=True)]
        weights, drawn = self.weights_on(dataset), dataset.drawn_positions
        weighted = sum(weight * positions for weight, positions in zip(weights, drawn, strict=True))
        mean = weighted / max(sum(drawn), 1.0 if dataset.shares is None else 0.0)
        return MixtureBatchLoss(
            parts=self.parts, losses=tuple(losses), weights=tuple(weight / mean for weight in weights)
        )

    def weights_on(self, dataset: MixedDataset) -> list[float]:
        """Weight of each position of every part.

        Where parts have shares of the steps, the weight is that of the part's share: its positions have one that makes
        the share of the loss that of the sequences, however many positions a sequence of it holds.
        """
        if dataset.shares is None:
            return [part.weight for part in self.parts]
        return [part.weight * len(own) / own.num_positions for part, own in zip(self.parts, dataset.parts, strict=True)]

    def _require_own(self, dataset: Any) -> None:
        if not isinstance(dataset, MixedDataset) or len(dataset.parts) != len(self.parts):
            got = f"{len(dataset.parts)} parts" if isinstance(dataset, MixedDataset) else type(dataset).__name__
            raise TypeError(f"a MixtureMethod of {len(self.parts)} parts needs a MixedDataset of as many, got {got}")

    def _split(self, casks: Sequence[Cask]) -> Iterator[tuple[MixturePart, list[Cask]]]:
        at = 0
        for part in self.parts:
            yield part, list(casks[at : at + part.num_casks])
            at += part.num_casks


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureBatchLoss:
    """`MixtureMethod` on a student and a dataset, a `BatchLoss`.

    Its batches hold one of each part. Its sums: of each part what it counts, then its own sums.
    """

    parts: tuple[MixturePart, ...]
    losses: tuple[BatchLoss, ...]
    weights: tuple[float, ...]
    """Of the parts, over the mean weight of the dataset's positions."""

    def collator(self, read: Sequence[Any]) -> dict[str, Any]:
        """A batch of each part."""
        batches = [loss.collator(own) for loss, own in zip(self.losses, read, strict=True)]
        # Flat, for transformers' count of operations: parts may have other lengths.
        return {"input_ids": torch.cat([batch["input_ids"].flatten() for batch in batches]), "parts": batches}

    def counted(self, batch: Any) -> Tensor:
        """The sum of what all parts count."""
        return torch.stack(self._counted(batch)).sum()

    def value(self, model: Any, batch: Any, progress: float) -> BatchValue:
        """One forward pass for each part."""
        values = [loss.value(model, own, progress) for loss, own in zip(self.losses, batch["parts"], strict=True)]
        weighted = [weight * value.loss for weight, value in zip(self.weights, values, strict=True)]
        sums = [
            torch.cat([counted[None].to(value.sums.device), value.sums])
            for counted, value in zip(self._counted(batch), values, strict=True)
        ]
        return BatchValue(loss=torch.stack(weighted).sum(), sums=torch.cat(sums))

    @property
    def num_sums(self) -> int:
        """One more for each part than it has itself."""
        return sum(1 + loss.num_sums for loss in self.losses)

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Means over all parts, and of each part under its label, `kl/LABEL`, where it has positions.

        A mean over parts weights each by its weight times what it counts. Losses of different kinds have none.
        """
        shares, each, named = list[float](), list[dict[str, float]](), dict[str, float]()
        positions = 0.0
        cut = zip(self.parts, self.weights, self.losses, self._cut(sums), strict=True)
        for part, weight, loss, (counted, *own) in cut:
            metrics = loss.metrics(own)
            positions += metrics["positions"]
            if counted:
                shares.append(weight * counted)
                each.append(metrics)
                named |= {f"{name}/{part.label}": value for name, value in metrics.items()}
        same_loss = len({part.loss for part in self.parts}) == 1
        means = {
            name: sum(share * metrics[name] for share, metrics in zip(shares, each, strict=True)) / sum(shares)
            for name in (_MEANS if same_loss else _OF_ALL_LOSSES)
            if each and all(name in metrics for metrics in each)
        }
        # The cross-entropy of a step without a position is 0, as in every method.
        return {"ce": 0.0, **means, "positions": positions, **named}

    def read(self, sums: Sequence[float]) -> float:
        """Positions that all parts read."""
        return sum(loss.read(own) for loss, (_, *own) in zip(self.losses, self._cut(sums), strict=True))

    def _counted(self, batch: Any) -> list[Tensor]:
        return [loss.counted(own) for loss, own in zip(self.losses, batch["parts"], strict=True)]

    def _cut(self, sums: Sequence[float]) -> Iterator[Sequence[float]]:
        at = 0
        for loss in self.losses:
            stop = at + 1 + loss.num_sums
            yield sums[at:stop]
            at = stop
