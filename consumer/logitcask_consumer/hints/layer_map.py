"""Which layer of the student learns from which layer of the teacher, among those that the cask has.

Shape legend: M blocks of the student, N blocks of the teacher, s and t layer numbers.

Layers have the numbers of Hugging Face's `output_hidden_states`: 0 the embeddings, k the output of block k, the last
one what the head reads.

    uniform   every layer t that the cask has, to s = t M / N, rounded (TinyBERT, arXiv 1909.10351: t = s N / M)
    skip      s to t = s N / M where that is a whole number (PKD-Skip, Patient KD, arXiv 1908.09355: every other layer)
    last      counted from the end: s to t = N - (M - s) (PKD-Last)
    S:T/S:T   these; negative numbers count from the end

`skip` and `last` take the pairs whose t the cask has. Patient KD leaves out the last layer, whose output the head's
loss trains: leave it out of the cask, or of the list.
"""

from dataclasses import dataclass

from logitcask_consumer.losses import LossParameterError
from logitcask_schemas.errors import LogitcaskError

NAMED_MAPS = ("uniform", "skip", "last")


class LayerMapError(LogitcaskError, ValueError):
    """A map of layers does not fit the student, or the layers that the cask has."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LayerPair:
    """Two layers, counted from 0."""

    student: int
    teacher: int

    def __str__(self) -> str:
        """As a list has them."""
        return f"{self.student}:{self.teacher}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """What a map is made for."""

    student: int
    """M."""
    teacher: int | None
    """N; None where nobody said: then maps take numbers from the start only."""
    recorded: tuple[int, ...]
    """Layers that the cask has, ascending."""
    first: int = 0
    """The lowest layer that there may be: 0 of hidden states, 1 of attention projections."""

    def __str__(self) -> str:
        """Both lists."""
        of_teacher = "" if self.teacher is None else f" of {self.teacher}"
        recorded = ", ".join(map(str, self.recorded))
        return f"the student has layers {self.first} to {self.student}, the cask those numbered {recorded}{of_teacher}"


def require_map(text: str) -> None:
    """Refuse what is no map at all.

    Raises:
        LossParameterError: it is neither named nor a list.
    """
    if text not in NAMED_MAPS:
        _listed(text)


def layer_pairs(text: str, depths: Depths) -> tuple[LayerPair, ...]:
    """The pairs of a map, by student layer.

    Args:
        text: a name, or a list.
        depths: of student, teacher and cask.

    Raises:
        LossParameterError: it is neither.
        LayerMapError: a layer is out of range or not in the cask, two teacher layers fall on one student layer, no pair
            is left, or the teacher's depth is needed and not known. Says which layers there are.
    """
    if text in NAMED_MAPS:
        pairs = _named(text, depths)
    else:
        pairs = [_resolved(student, teacher, text, depths) for student, teacher in _listed(text)]
    students = [pair.student for pair in pairs]
    if twice := sorted({layer for layer in students if students.count(layer) > 1}):
        on = ", ".join(str(pair) for pair in pairs if pair.student == twice[0])
        raise LayerMapError(
            f"map {text!r}: layer {twice[0]} of the student would learn from several ({on}); {depths}. Write a list, "
            f"such as {_example(depths)}, or capture fewer layers"
        )
    if not pairs:
        raise LayerMapError(
            f"map {text!r} fits no layer; {depths}. Capture other layers, or write a list, such as {_example(depths)}"
        )
    return tuple(sorted(pairs))


def _named(name: str, depths: Depths) -> list[LayerPair]:
    ours, theirs = depths.student, depths.teacher
    if theirs is None:
        raise LayerMapError(
            f"map {name!r} needs the teacher's number of layers, which the cask does not have: name the teacher's "
            f"folder (--teacher), of which only config.json is read, or write a list, such as "
            f"{_example(depths)}; {depths}"
        )
    pairs = []
    for layer in depths.recorded:
        if name == "uniform":
            # Halves go up: Python would round them to the even one.
            student = (2 * layer * ours + theirs) // (2 * theirs)
        elif name == "skip":
            student = layer * ours // theirs if layer * ours % theirs == 0 else -1
        else:
            student = ours - (theirs - layer)
        if name == "uniform" or depths.first <= student:
            pairs.append(LayerPair(student=max(student, depths.first), teacher=layer))
    # The embeddings are no layer of Patient KD's maps.
    return pairs if name == "uniform" else [pair for pair in pairs if pair.student > 0]


def _listed(text: str) -> list[tuple[int, int]]:
    pairs = []
    for part in text.split("/"):
        student, colon, teacher = part.partition(":")
        try:
            if not colon:
                raise ValueError
            pairs.append((int(student), int(teacher)))
        except ValueError:
            raise LossParameterError(
                f"{text!r} is no map of layers: give {', '.join(NAMED_MAPS)}, or pairs of a student's and a teacher's "
                "layer, such as 4:10/8:20"
            ) from None
    return pairs


def _resolved(student: int, teacher: int, text: str, depths: Depths) -> LayerPair:
    if teacher < 0 and depths.teacher is None:
        raise LayerMapError(
            f"map {text!r} counts the teacher's layers from the end, and the cask does not say how many there are: "
            f"name the teacher's folder (--teacher); {depths}"
        )
    ours = student + depths.student + 1 if student < 0 else student
    theirs = teacher + (depths.teacher or 0) + 1 if teacher < 0 else teacher
    if not depths.first <= ours <= depths.student:
        raise LayerMapError(f"map {text!r}: the student has no layer {student}; {depths}")
    if theirs not in depths.recorded:
        raise LayerMapError(
            f"map {text!r}: layer {teacher} of the teacher is not in the cask; {depths}. Capture it (hints.layers), or "
            "map another"
        )
    return LayerPair(student=ours, teacher=theirs)


def _example(depths: Depths) -> str:
    return f"{depths.student}:{depths.recorded[-1]}"
