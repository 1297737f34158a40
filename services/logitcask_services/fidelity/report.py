"""The table: what each step between the teacher and a student's target costs in nats, with intervals over documents."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.terminal import counted
from logitcask_services.fidelity.measure import DocumentFigures, Floats, Meter
from logitcask_services.fidelity.passes import NAMED, EnginePasses
from logitcask_services.pilot.extrapolation import DocumentMean, document_mean
from logitcask_services.pilot.logits import LogitsFunction

FORMAT: Final = {"format": "logitcask-fidelity", "version": 1}
BATCH: Final = 2**14
"""Positions of a batch, to say what noise is left in its mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    """For people."""
    nats: DocumentMean | None
    """Per position; None where it was not measured, and `note` says why."""
    kind: str
    """What the number is: of which parts, exact or a bound."""
    note: str = ""
    details: dict[str, float | int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "what": self.what,
            "nats": None if self.nats is None else asdict(self.nats),
            "kind": self.kind,
            "note": self.note,
            "details": self.details,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityReport:
    """What was looked at, and the table."""

    teacher: TeacherIdentity
    cask_teacher: TeacherIdentity | None
    """Of the cask that was looked at; None where there was none."""
    spec: CaptureSpec
    documents: int
    positions: int
    entropy: DocumentMean
    """Of the teacher: the yardstick."""
    rows: tuple[Row, ...]

    @property
    def differences(self) -> dict[str, tuple[object, object]]:
        """In which members of the identity the cask's teacher, then this one, are not the same."""
        return {} if self.cask_teacher is None else self.cask_teacher.differences(self.teacher)

    def row(self, name: str) -> Row:
        """One line by its name."""
        return next(row for row in self.rows if row.name == name)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            **FORMAT,
            "teacher": self.teacher.model_dump(mode="json"),
            "capture": self.spec.model_dump(mode="json"),
            "differences": {name: list(values) for name, values in self.differences.items()},
            "documents": self.documents,
            "positions": self.positions,
            "entropy": asdict(self.entropy),
            "rows": [row.as_dict() for row in self.rows],
        }

    def as_markdown(self) -> str:
        """A page."""
        teacher = self.teacher
        lines = [
            f"# Fidelity of records of {teacher.model}",
            "",
            f"{counted(self.positions, 'position')} of {counted(self.documents, 'document')}, captured by "
            f"{teacher.engine} {teacher.engine_version} in {teacher.dtype}; plain forward passes of transformers in "
            f"float32. The teacher's entropy is {nats_text(self.entropy)} nats per position. Intervals are of 95 %, "
            "over documents.",
            "",
            "| | nats per position | 95 % | |",
            "|---|---:|---:|---|",
        ]
        for row in self.rows:
            note = "; ".join(text for text in (row.kind, row.note) if text)
            lines.append(f"| `{row.name}`: {row.what} | {nats_text(row.nats)} | {interval_text(row.nats)} | {note} |")
        if self.differences:
            named = "; ".join(
                f"{name}: {mine!r} in the cask, {here!r} here" for name, (mine, here) in self.differences.items()
            )
            lines += ["", f"The cask's teacher is not this one ({named}), which the row of the cask counts."]
        return "\n".join(lines) + "\n"


def nats_text(nats: DocumentMean | None) -> str:
    """A value with three digits; nothing where there is none."""
    return "" if nats is None else f"{nats.value:.3g}"


def interval_text(nats: DocumentMean | None) -> str:
    """The interval of a value, or nothing."""
    return "" if nats is None or nats.low is None else f"{nats.low:.3g} to {nats.high:.3g}"


def fidelity_report(
    passes: EnginePasses,
    plain: LogitsFunction,
    *,
    windows: Sequence[int] = (),
    done: Callable[[int], None] = lambda positions: None,
) -> FidelityReport:
    """Measure every document against a plain forward pass, and make the table.

    Args:
        passes: what the engine and the cask say.
        plain: token ids [L] to logits [L - 1, V]; the same model as plainly as there is.
        windows: tokens; what documents that are longer lose when they are cut.
        done: is told the positions of each document that is done.

    Raises:
        PilotError: the plain pass gives logits of another shape.
    """
    sample = passes.sample
    assert sample.stored is not None  # `engine_passes` makes a cask where there is none
    entries = sum(len(each.records.head_ids_H) + len(each.records.tail_ids_N) for each in sample.stored)
    k = sample.spec.k if sample.spec.mode == "topk" else max(1, round(entries / sample.positions))
    meter = Meter(
        logits_of=plain,
        spec=sample.spec,
        teacher=passes.identity,
        k=min(k, passes.identity.vocab_size),
        windows=windows,
    )
    figures = list[DocumentFigures]()
    for task, alone, together, stored in zip(sample.tasks, passes.alone, passes.together, sample.stored, strict=True):
        figures.append(meter.measure(task, alone, together, stored))
        done(stored.records.num_positions)
    table = _Table(figures)
    return FidelityReport(
        teacher=passes.identity,
        cask_teacher=sample.teacher,
        spec=sample.spec,
        documents=len(figures),
        positions=sample.positions,
        entropy=table.mean("entropy"),
        rows=(
            table.control(),
            Row(
                name="capture",
                what="the engine against a plain forward pass",
                nats=table.divergence("capture"),
                kind=f"{NAMED} tokens and the rest",
                note="the engine's other arithmetic; at the control's height nothing is wrong",
            ),
            Row(
                name="codec",
                what=f"an exact record in {sample.spec.logprob_codec}",
                nats=table.divergence("codec"),
                kind="the head and the rest",
            ),
            Row(
                name="cask",
                what="the cask against a plain forward pass",
                nats=table.divergence("cask"),
                kind="the head and the rest",
                note="capture and codec together, and all else that befell the records",
            ),
            *table.target(meter),
            table.truncation(meter),
            *(table.window(window) for window in windows),
        ),
    )


class _Table:
    """Figures of all documents, to make lines of."""

    def __init__(self, figures: Sequence[DocumentFigures]) -> None:
        self._figures = figures
        self._columns = {name: np.concatenate([each.columns[name] for each in figures]) for name in figures[0].columns}
        sizes = [len(each.columns["entropy"]) for each in figures]
        self._documents_R = np.repeat(np.arange(len(figures)), sizes)

    def mean(self, name: str) -> DocumentMean:
        """Over all positions."""
        return document_mean(self._columns[name], self._documents_R)

    def divergence(self, name: str) -> DocumentMean:
        """The same of what is never below zero."""
        return _not_below_zero(self.mean(name))

    def control(self) -> Row:
        """The teacher against itself."""
        common, named = (sum(getattr(each, name) for each in self._figures) for name in ("common", "named"))
        largest = max(each.largest for each in self._figures)
        return Row(
            name="control",
            what="the engine twice: each document alone, and all in company",
            nats=self.divergence("control"),
            kind=f"{NAMED} tokens and the rest",
            note=f"{common / named:.2%} of the tokens are the same, log-probabilities at most {largest:.1g} apart",
            details={"same_tokens": common / named, "largest_difference": largest},
        )

    def target(self, meter: Meter) -> tuple[Row, Row]:
        """Whether the draws are right on average, and how much they scatter."""
        what = (
            "the training target: its cross-entropy to the teacher, less the entropy",
            "the same at one position: standard deviation over the draws",
        )
        if not meter.draws:
            note = "records of mode topk have no draws: see truncation"
            target, noise = (
                Row(name=name, what=text, nats=None, kind="", note=note)
                for name, text in zip(("target", "noise"), what, strict=True)
            )
            return target, noise
        variance = self.mean("variance")
        noise_of_batch = float(np.sqrt(variance.value / BATCH))
        return (
            Row(
                name="target",
                what=what[0],
                nats=self.mean("target"),
                kind="unbiased",
                note="an interval around 0 is what unbiased draws give",
            ),
            Row(
                name="noise",
                what=what[1],
                nats=variance.root(),
                kind="exact",
                note=f"{noise_of_batch:.2g} in the mean of {BATCH:,} positions",
                details={"variance": variance.value, "of_a_batch": noise_of_batch},
            ),
        )

    def truncation(self, meter: Meter) -> Row:
        """What as many entries as a top-k, scaled to one, would lose."""
        lost = 1 - float(np.exp(-self._columns["truncation"]).mean())
        shortfall = float(self._columns["truncation_target"].mean())
        entries = "" if not meter.draws else ", as many entries as these records have"
        return Row(
            name="truncation",
            what=f"top-{meter.k} scaled to one{entries}",
            nats=self.divergence("truncation"),
            kind="whole vocabulary",
            note=f"{lost:.2%} of the mass is lost; its target's cross-entropy lies {-shortfall:.3g} below the entropy",
            details={"k": meter.k, "lost_mass": lost, "target": shortfall},
        )

    def window(self, window: int) -> Row:
        """What documents lose that are cut."""
        what = f"windows of {window:,} tokens instead of whole documents"
        longer = [number for number, each in enumerate(self._figures) if window in each.windows_P]
        if not longer:
            note = "not measured: no document of the sample is longer"
            return Row(name=f"window-{window}", what=what, nats=None, kind="", note=note)
        values: list[Floats] = [self._figures[number].windows_P[window] for number in longer]
        kl_P, later_P = np.concatenate(values), np.concatenate([self._figures[n].later_P[window] for n in longer])
        documents_P = np.repeat(longer, [len(each) for each in values])
        later = document_mean(kl_P[later_P], documents_P[later_P])
        return Row(
            name=f"window-{window}",
            what=what,
            nats=_not_below_zero(document_mean(kl_P, documents_P)),
            kind="whole vocabulary",
            note=f"{counted(len(longer), 'document')} of the sample; {later.value:.3g} in later windows, which hold "
            f"{float(later_P.mean()):.0%} of their positions",
            details={"documents": len(longer), "later": later.value, "share_later": float(later_P.mean())},
        )


def _not_below_zero(mean: DocumentMean) -> DocumentMean:
    low = None if mean.low is None else max(mean.low, 0.0)
    return DocumentMean(value=mean.value, low=low, high=mean.high)
