"""What a student is expected to be worth as a draft: shares of drafts that are kept, dense or from `report.json`.

Which share it is depends on how both write. With t the teacher and p the student: where the teacher writes its most
likely token, how often that is the student's (`agreement`); where it samples, the mean of t(argmax p) for drafts that
are the student's most likely tokens (`greedy_acceptance`), and of sum_j min(t_j, p_j) for sampled ones (`acceptance`;
Leviathan et al., arXiv 2211.17192). From a share a follow a^i for the drafted token i, and 1 + a + ... + a^g tokens of
a step, as if drafts failed independently; where they fail in clusters a step gives more.

Shape legend: R rows, V vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from logitcask_services.draft_check.speculation import DraftCheckError

Metric: TypeAlias = Literal["agreement", "greedy_acceptance", "acceptance"]
WHAT: Final[dict[Metric, str]] = {
    "agreement": "the most likely tokens of student and teacher are the same",
    "greedy_acceptance": "t of the student's most likely token",
    "acceptance": "sum of min(t, p)",
}


_Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_FORMATS: Final = ("logitcask-report", "logitcask-reports")
"""Of report.json on one teacher, and of one that holds those of several."""


def metric_of(temperature: float, *, sampled: bool) -> Metric:
    """Which share counts.

    Args:
        temperature: of the teacher's texts.
        sampled: whether drafts are sampled.
    """
    if temperature == 0:
        return "agreement"
    return "acceptance" if sampled else "greedy_acceptance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """A share of drafts that should be kept, between the ends of its interval, or of a bracket."""

    source: str
    """Where it comes from, for people."""
    metric: Metric
    value: float | None
    """None where only a bracket is known."""
    low: float | None
    high: float | None


def tokens_per_step(acceptance: float, drafted: int) -> float:
    """Expected tokens of a step with so many drafted tokens, 1 to `drafted` + 1."""
    return sum(acceptance**kept for kept in range(drafted + 1))


def accepted(log_t_RV: torch.Tensor, log_p_RV: torch.Tensor, metric: Metric) -> NDArray[np.float64]:
    """The share at each position, float64 [R].

    Args:
        log_t_RV: of the teacher.
        log_p_RV: of the student, as wide.
        metric: which share.
    """
    best_R = log_p_RV.argmax(-1)
    if metric == "agreement":
        share_R = (best_R == log_t_RV.argmax(-1)).double()
    elif metric == "greedy_acceptance":
        share_R = log_t_RV.gather(1, best_R[:, None])[:, 0].exp()
    else:
        share_R = torch.minimum(log_t_RV, log_p_RV).exp().sum(-1)
    shares_R: NDArray[np.float64] = share_R.cpu().numpy()
    return shares_R


def of_report(path: Path, label: str | None, metric: Metric) -> Foretold:
    """What a `report.json` of `logitcask report` says of one of its models.

    Args:
        path: the file, or the folder it is in.
        label: of the model; None where there is one alone.
        metric: which share.

    Raises:
        DraftCheckError: it is no report, a damaged one, or says nothing of the model or the share.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DraftCheckError(f"--report {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DraftCheckError(f"--report {file} is not JSON ({error}); expected report.json of a report") from error
    if not isinstance(document, dict) or document.get("format") not in _FORMATS:
        raise DraftCheckError(f"--report {file} is no report.json of `logitcask report`")
    if document["format"] != _FORMATS[0]:
        parts = _checked(file, _Parts, document).teachers
        folders = ", ".join(str(file.parent / part.folder) for part in parts)
        raise DraftCheckError(f"--report {file} is of several teachers; name the folder of this one's: {folders}")
    return _of_model(file, _checked(file, _Report, document), label, metric)


class _Ends(BaseModel):
    """Of a bracket."""

    low: _Number
    high: _Number


class _Figure(BaseModel):
    """An estimate; of one document it has no interval."""

    value: _Number
    low: _Number | None
    high: _Number | None


class _Model(BaseModel):
    """One model of a report: the shares of drafts among its figures."""

    label: str
    metrics: dict[str, Any]
    brackets: dict[str, Any] = Field(default_factory=dict)


class _Report(BaseModel):
    """As much of report.json as is read here."""

    models: list[_Model]
    kinds: dict[str, str] = Field(default_factory=dict)


class _Part(BaseModel):
    """The report on one of several teachers."""

    folder: str


class _Parts(BaseModel):
    """report.json on several teachers."""

    teachers: list[_Part]


Read = TypeVar("Read", bound=BaseModel)


def _checked(file: Path, kind: type[Read], value: Any, *within: str) -> Read:
    """A part of a report as what it should be; `within` says where it stands. Raises DraftCheckError."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in (*within, *first["loc"]))
        raise DraftCheckError(
            f"--report {file} is damaged, at `{place}`: {first['msg']}. Make the report again, or leave --report out"
        ) from error


def _of_model(file: Path, report: _Report, label: str | None, metric: Metric) -> Foretold:
    """As `of_report`."""
    models = {model.label: model for model in report.models}
    if label is None and len(models) > 1:
        raise DraftCheckError(f"--report {file} has {', '.join(models)}; say which with --label")
    chosen = models.get(label) if label is not None else next(iter(models.values()), None)
    if chosen is None:
        raise DraftCheckError(f"--report {file} has no model {label!r}; it has {', '.join(models) or 'none'}")
    source = f"{metric} of {chosen.label} in {file.name}"
    bracket, estimate = chosen.brackets.get(metric), chosen.metrics.get(metric)
    # As in the report: beside its two ends a figure counts only where it is no bound itself.
    if estimate is not None and (bracket is None or report.kinds.get(metric) == "unbiased"):
        figure = _checked(file, _Figure, estimate, "metrics", metric)
        return Foretold(source=source, metric=metric, value=figure.value, low=figure.low, high=figure.high)
    if bracket is not None:
        ends = _checked(file, _Ends, bracket, "brackets", metric)
        return Foretold(source=source, metric=metric, value=None, low=ends.low, high=ends.high)
    raise DraftCheckError(
        f"--report {file} says nothing of {metric} for {chosen.label}: its records do not tell it. Leave --report "
        "out, then it is measured here"
    )
