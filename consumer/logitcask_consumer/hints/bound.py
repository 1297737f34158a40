"""Hint losses on one student and one dataset: which layers, with modules that the student carries while it is trained.

Shape legend: B sequences, S slots, T trained positions, D width of a state, L hint losses.

The modules lie in the student, so that whatever wraps it (DDP, FSDP), optimizes it or saves its progress sees their
parameters; a saved student is without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, cast

import torch
from torch import Tensor, nn

from logitcask_consumer.data import CaskDataset
from logitcask_consumer.data.hint_rows import HintTensors, decoded_layer
from logitcask_consumer.hints.hint_loss import HintLoss, HintMismatchError, HintTerm, Sides
from logitcask_consumer.hints.layer_map import Depths, LayerPair
from logitcask_consumer.hints.objective import HintObjective
from logitcask_consumer.hints.teacher_folder import TeacherShape
from logitcask_consumer.student.layer_states import (
    NotedStates,
    StatePlace,
    blocks_of,
    projection_widths,
    state_rows,
    state_width,
)
from logitcask_schemas.record.hint_spec import HintSpec

HINTS_NAME: Final = "logitcask_hints"
"""Name of the modules within the student."""


class HintModules(nn.Module):
    """The terms of all hint losses on a student."""

    def __init__(self, terms: Sequence[Sequence[HintTerm]], key: str) -> None:
        """Hold a list of terms for each loss; `key` says what they were made for."""
        super().__init__()
        self.terms = nn.ModuleList(nn.ModuleList(of_loss) for of_loss in terms)
        self.key = key

    def term(self, loss: int, pair: int) -> HintTerm:
        """Of a loss, between its pair of layers of that number."""
        return cast("HintTerm", cast("nn.ModuleList", self.terms[loss])[pair])


def hint_modules(model: Any) -> HintModules | None:
    """Those that a student carries; None where it has none."""
    carried = getattr(model, HINTS_NAME, None)
    return carried if isinstance(carried, HintModules) else None


class HintedDataset(Protocol):
    """The part of a dataset that hint losses read."""

    @property
    def hint_width(self) -> int:
        """Numbers of one of the teacher's vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HintPlan:
    """Which layers of a student learn from which, by what losses."""

    objective: HintObjective
    spec: HintSpec
    pairs: tuple[tuple[LayerPair, ...], ...]
    """Of each loss."""

    @classmethod
    def of(cls, objective: HintObjective, model: Any, dataset: CaskDataset, teacher: TeacherShape | None) -> Self:
        """Map the layers.

        Args:
            objective: whose needs of the capture are met.
            model: the student.
            dataset: with hints.
            teacher: by its folder; None where nobody named it.

        Raises:
            LayerMapError, LossParameterError: a map does not fit.
            HintMismatchError: the folder is not that of the cask's teacher.
        """
        spec = dataset.manifest.capture.hints
        assert spec is not None, "the objective's needs are met"
        _require_teacher(spec, dataset, teacher)
        depths = Depths(
            student=len(blocks_of(model)),
            teacher=None if teacher is None else teacher.blocks,
            recorded=tuple(spec.layers),
            first=0 if spec.of == "hidden" else 1,
        )
        return cls(objective=objective, spec=spec, pairs=tuple(loss.pairs(depths) for loss in objective.losses))

    def notes(self) -> list[str]:
        """A sentence for each loss: which layer of the student learns from which layer of the teacher."""
        lines = []
        for loss, pairs in zip(self.objective.losses, self.pairs, strict=True):
            mapped = ", ".join(f"{pair.student} from {pair.teacher}" for pair in pairs)
            lines.append(f"hints {loss.spec}: {self.spec.of} of the student's layer {mapped} (codec {self.spec.codec})")
        return lines

    def on(
        self,
        model: Any,
        dataset: CaskDataset,
        teacher: TeacherShape | None,
        *,
        filters: dict[int, Tensor] | None = None,
        seed: int = 0,
    ) -> "HintsOnStudent":
        """Give the student the modules, unless it has them already.

        Args:
            model: the student, before it is wrapped.
            dataset: with hints.
            teacher: by its folder.
            filters: of the teacher's layers, for losses that need them.
            seed: of learned projections.

        Raises:
            HintMismatchError: widths do not fit, or the student carries modules of other hint losses.
        """
        key = f"{self.objective.losses} {self.pairs} {self.spec} {dataset.hint_width}"
        carried = hint_modules(model)
        if carried is not None and carried.key != key:
            raise HintMismatchError(
                "the student carries the projections of other hint losses: train and evaluate it with one --hints, on "
                "casks whose hints have the same layers, codec and width"
            )
        if carried is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                modules = HintModules(self._terms(model, dataset, teacher, filters or {}), key)
            weight = model.get_output_embeddings().weight
            setattr(model, HINTS_NAME, modules.to(device=weight.device))
        return HintsOnStudent(plan=self, last=len(blocks_of(model)))

    def _terms(
        self, model: Any, dataset: CaskDataset, teacher: TeacherShape | None, filters: dict[int, Tensor]
    ) -> list[list[HintTerm]]:
        of = self.spec.of

        def sides(loss: HintLoss, pair: LayerPair) -> Sides:
            query, key, value = projection_widths(model)
            width = dataset.hint_width
            stored = (width,) if teacher is None or of == "v" else teacher.parts
            return Sides(
                of=of,
                student_width=state_width(model, of),
                teacher_width=width,
                projected=self.spec.projected,
                seed=self.spec.seed,
                student_parts=(value,) if of == "v" else (query, key, value),
                teacher_parts=stored,
                filter_DD=filters[pair.teacher] if loss.filtered else None,
            )

        return [
            [loss.term(sides(loss, pair)) for pair in pairs]
            for loss, pairs in zip(self.objective.losses, self.pairs, strict=True)
        ]


def _require_teacher(spec: HintSpec, dataset: HintedDataset, teacher: TeacherShape | None) -> None:
    """Raise HintMismatchError where a folder cannot be that of the hints' teacher, or is needed and not named."""
    if teacher is None:
        if spec.of == "qkv":
            raise HintMismatchError(
                "hints of qkv hold query, key and value end to end; where each begins says the teacher's config.json: "
                "name its folder (--teacher)"
            )
        return
    expected = {"hidden": teacher.hidden, "v": teacher.parts[2], "qkv": sum(teacher.parts)}[spec.of]
    if expected != dataset.hint_width or spec.layers[-1] > teacher.blocks:
        raise HintMismatchError(
            f"{teacher.folder} has {teacher.blocks} layers and {spec.of} vectors of {expected} numbers; the cask has "
            f"hints of layers {list(spec.layers)} and {dataset.hint_width} numbers: name the folder of the cask's "
            "teacher (--teacher)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HintsOnStudent:
    """Hint losses on a student."""

    plan: HintPlan
    last: int
    """M."""

    @property
    def losses(self) -> tuple[HintLoss, ...]:
        """In the order of the sums."""
        return self.plan.objective.losses

    def task(self, hints: HintTensors, documents_T: Tensor, progress: float) -> "HintTask":
        """What the student's forward needs for a batch.

        Args:
            hints: rows of the trained positions.
            documents_T: number of the document of each.
            progress: part of the run done, 0 to 1.
        """
        weights = tuple(weight for weight, _ in self.plan.objective.terms(progress))
        return HintTask(plan=self.plan, last=self.last, hints=hints, documents_T=documents_T, weights=weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class HintTask:
    """The hint losses of a batch, a `StateTask`."""

    plan: HintPlan
    last: int
    hints: HintTensors
    documents_T: Tensor
    weights: tuple[float, ...]

    @property
    def places(self) -> list[StatePlace]:
        """States that are needed of the student, each once."""
        layers = {pair.student for pairs in self.plan.pairs for pair in pairs}
        return [StatePlace(of=self.plan.spec.of, layer=layer) for layer in sorted(layers)]

    def values(self, model: Any, states: NotedStates, slots_T: Tensor) -> Tensor:
        """Each hint loss at each position, summed over its pairs of layers, without its weight, [L, T].

        Args:
            model: the student, which carries the modules.
            states: of `places`.
            slots_T: flat index of each position.
        """
        modules = hint_modules(model)
        assert modules is not None, "HintPlan.on gives the student its modules"
        rows = {place.layer: state_rows(states, place, slots_T) for place in self.places}
        dtype = torch.promote_types(next(iter(rows.values())).dtype, torch.float32)
        of_losses = []
        # Half precision would leave two digits of a distance between near vectors.
        with torch.autocast(slots_T.device.type, enabled=False):
            for number, pairs in enumerate(self.plan.pairs):
                of_pairs = []
                for at, pair in enumerate(pairs):
                    teacher_TW = decoded_layer(self.hints, self.plan.spec.layers.index(pair.teacher), dtype)
                    term = modules.term(number, at)
                    of_pairs.append(term(rows[pair.student].to(dtype), teacher_TW, self.documents_T))
                of_losses.append(torch.stack(of_pairs).sum(0))
        return torch.stack(of_losses)
