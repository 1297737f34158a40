"""A method: what turns a cask into a loss. One trainer and one run serve every method.

A method lives in two steps. `Method` is what can be said before there is a student: which casks fit, which sequences
they give, which students may learn from them. `BatchLoss` is the method on one student and one dataset: what a batch
is, what it counts and what it costs. `DistillTrainer` sees only these two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor

from logitcask_consumer.data import Packing, SequenceDataset
from logitcask_schemas.cask import Cask


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchValue:
    """What a method makes of one batch."""

    loss: Tensor
    """The loss summed over the batch, nats, a differentiable scalar; divide it by what the whole step counts."""
    sums: Tensor
    """float64 [N]: sums over the batch that metrics are made of; they add up over batches and processes."""


class BatchLoss(Protocol):
    """A method on one student and one dataset."""

    @property
    def collator(self) -> Callable[[Any], Any]:
        """Makes a batch, a dict, of what the dataset reads."""

    def counted(self, batch: Any) -> Tensor:
        """What the loss of a batch is divided by, known before the student runs; float64, a scalar, on its device."""

    def value(self, model: Any, batch: Any, progress: float) -> BatchValue:
        """Run the student on a batch, through the forward of whatever wraps it.

        Args:
            model: the student, or its wrapper.
            batch: from the collator, on the student's device.
            progress: part of the run done, 0 to 1, for weights that follow a schedule.
        """

    @property
    def num_sums(self) -> int:
        """Length of `BatchValue.sums`."""

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Means over what was trained, from added-up `BatchValue.sums`; nats. `positions` is how many these are."""

    def read(self, sums: Sequence[float]) -> float:
        """Positions that were read for them, trained or not, for the throughput."""


class Evaluator(Protocol):
    """What measures a student on a dataset, besides the method that it is trained by."""

    def on(self, model: Any, dataset: Any) -> BatchLoss:
        """The measure on a student, whose forward `student.forward.attach` has prepared, and a dataset of its kind."""


class Method(Protocol):
    """A way to learn from casks."""

    def bound(self, casks: Sequence[Cask]) -> Self:
        """The method for these casks.

        Raises:
            IdentityMismatchError: a tokenizer is not the one that they were made with.
            LossMismatchError: their records lack what the loss needs.
        """

    def binding(self) -> dict[str, Any]:
        """What a resumption must share with the run it continues, besides the run's settings; JSON types."""

    def dataset(
        self, casks: Sequence[Cask], *, seq_len: int, overlap: int, packing: Packing, seed: int
    ) -> SequenceDataset[Any]:
        """The training sequences.

        Args:
            casks: those that it is bound to.
            seq_len: slots of a sequence.
            overlap: context slots of later windows of a long document.
            packing: several documents per sequence, or not.
            seed: of packing and order.

        Raises:
            EmptyCaskError, NothingTrainedError, NothingAlignedError: nothing is left to be trained.
        """

    def prepared(self, dataset: Any, folder: Path, say: Callable[[str], None]) -> Self:
        """The method with what must be made before the first step.

        Args:
            dataset: of its own kind.
            folder: of the run; what was made lies there for a resumption.
            say: receives messages for people.
        """

    def check(self, model: Any, dataset: Any) -> None:
        """Refuse a student that does not fit the records of a dataset of its own kind, or the way they are packed.

        Raises:
            IdentityMismatchError: its vocabulary lacks tokens.
            ModelError: its logits are not its head's, or it cannot keep packed documents apart.
        """

    def notes(self, dataset: Any, model: Any) -> list[str]:
        """What people should know before training, a sentence each; dataset and student have passed `check`."""

    def on(self, model: Any, dataset: Any) -> BatchLoss:
        """The method on a student, whose forward `student.forward.attach` has prepared, and a dataset of its own kind.

        Raises:
            LossMismatchError: the dataset's records lack what the loss needs.
        """
