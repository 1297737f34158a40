"""The draft check: measured by vLLM, replayed on the text, and foretold, side by side.

Shape legend: L tokens of a text with its prompt, C of the prompt, N written, R rows, V vocabulary, g drafted tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_services.draft_check.controls import Control, greedy_control, sampled_control
from logitcask_services.draft_check.foretold import Foretold, accepted, metric_of, tokens_per_step
from logitcask_services.draft_check.speculation import Speculation, WrittenText, kept_of_steps
from logitcask_services.pilot.extrapolation import DocumentMean, document_mean
from logitcask_services.pilot.logits import LogitsFunction, checked_logits

FORMAT: Final = {"format": "logitcask-draft-check", "version": 1}
_BLOCK: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One way to know it."""

    first: float | None
    """Share of steps that keep the first drafted token; None where only a bracket is known."""
    low: float | None
    high: float | None
    rates_g: tuple[float, ...] | None
    """Share of steps that keep the drafted tokens up to each place."""
    tokens_per_step: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCheck:
    """The whole of it."""

    teacher: str
    draft: str
    drafted: int
    temperature: float
    texts: int
    tokens: int
    """Written."""
    foretold_by: str
    foretold: Figures
    on_text: Figures
    """On the text that was written, from plain forward passes: at temperature 0 replayed step by step, else from the
    share at each position."""
    measured: Figures | None
    """By vLLM; None where the control failed."""
    steps: int
    control: Control

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        withheld = None if self.measured is not None else self.control.says
        return {**FORMAT, **asdict(self), "withheld": withheld}


@torch.inference_mode()
def check_draft(
    speculation: Speculation,
    teacher: LogitsFunction,
    draft: LogitsFunction,
    *,
    names: tuple[str, str],
    drafted: int,
    temperature: float,
    sampled: bool,
    foretold: Foretold | None,
    held_out: Sequence[NDArray[np.uint32]] = (),
    done: Callable[[str], None] = lambda what: None,
) -> DraftCheck:
    """Put what vLLM counted beside what plain forward passes of both say, and prove that its texts are the teacher's.

    Args:
        speculation: what vLLM wrote and counted.
        teacher: token ids [L] to logits [L - 1, V].
        draft: the same of the student.
        names: of teacher and student, for people.
        drafted: tokens of a step.
        temperature: 0 or 1.
        sampled: whether drafts were sampled.
        foretold: from a report; None: from `held_out`.
        held_out: texts to foretell from, where no report does.
        done: is told what comes next.

    Raises:
        PilotError: logits of another shape.
    """
    metric = metric_of(temperature, sampled=sampled)
    if foretold is None:
        done(f"{len(held_out)} held-out texts in plain forward passes of both")
        shares = [
            np.concatenate([accepted(log_t, log_p, metric) for log_t, log_p in _both(teacher, draft, ids, 0)])
            for ids in held_out
        ]
        mean = _mean(shares)
        foretold = Foretold(
            source=f"{metric} on {len(held_out)} held-out texts",
            metric=metric,
            value=mean.value,
            low=mean.low,
            high=mean.high,
        )
    done(f"{len(speculation.texts)} written texts in plain forward passes of both")
    said = [_said(text, teacher, draft, metric, drafted) for text in speculation.texts]
    if temperature == 0:
        control = greedy_control(np.concatenate([each.gaps_N for each in said]))
        on_text = _replayed([each.kept_S for each in said], drafted)
    else:
        excesses = [each.excess_N for each in said]
        control = sampled_control(np.concatenate(excesses), _numbers(excesses))
        on_text = _of_share(_mean([each.shares_N for each in said]), drafted)
    measured = Figures(
        first=speculation.rates_g[0],
        low=None,
        high=None,
        rates_g=tuple(speculation.rates_g),
        tokens_per_step=speculation.tokens_per_step,
    )
    return DraftCheck(
        teacher=names[0],
        draft=names[1],
        drafted=drafted,
        temperature=temperature,
        texts=len(speculation.texts),
        tokens=sum(len(text.written_ids_N) for text in speculation.texts),
        foretold_by=foretold.source,
        foretold=_of_foretold(foretold, drafted),
        on_text=on_text,
        measured=measured if control.passed else None,
        steps=speculation.steps,
        control=control,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What plain passes say of a written text."""

    gaps_N: NDArray[np.float64]
    excess_N: NDArray[np.float64]
    shares_N: NDArray[np.float64]
    kept_S: NDArray[np.int64]


def _said(text: WrittenText, teacher: LogitsFunction, draft: LogitsFunction, metric: Any, drafted: int) -> _Said:
    ids, first = text.read_ids, len(text.prompt_ids_C)
    gaps, excesses, shares, best = [], [], [], []
    next_ids = torch.from_numpy(ids[first:].astype(np.int64))
    for log_t_RV, log_p_RV in _both(teacher, draft, ids, first - 1):
        written_R, next_ids = next_ids[: len(log_t_RV)], next_ids[len(log_t_RV) :]
        log_y_R = log_t_RV.gather(1, written_R.to(log_t_RV.device)[:, None])[:, 0]
        entropy_R = torch.special.entr(log_t_RV.exp()).sum(-1)
        gaps.append((log_t_RV.amax(-1) - log_y_R).cpu().numpy())
        excesses.append((-log_y_R - entropy_R).cpu().numpy())
        shares.append(accepted(log_t_RV, log_p_RV, metric))
        best.append(log_p_RV.argmax(-1).cpu().numpy())
    # Behind the prompt's last token and all written ones but the last; nobody drafts before, or looks behind.
    best_L = np.concatenate([np.zeros(first - 1, np.int64), *best, np.zeros(1, np.int64)])
    return _Said(
        gaps_N=np.concatenate(gaps),
        excess_N=np.concatenate(excesses),
        shares_N=np.concatenate(shares),
        kept_S=kept_of_steps(ids, best_L, first=first, drafted=drafted),
    )


def _both(
    teacher: LogitsFunction, draft: LogitsFunction, ids: NDArray[np.uint32], first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities of both from row `first` on, float64, a block of rows at a time."""
    logits_t, logits_p = checked_logits(teacher, ids), checked_logits(draft, ids)
    for start in range(first, len(logits_t), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield logits_t[block].double().log_softmax(-1), logits_p[block].double().log_softmax(-1)


def _replayed(kept: Sequence[NDArray[np.int64]], drafted: int) -> Figures:
    """Of steps that were replayed."""
    kept_S = np.concatenate(kept)
    if not len(kept_S):
        return Figures(first=None, low=None, high=None, rates_g=None, tokens_per_step=None)
    first = document_mean((kept_S > 0).astype(np.float64), _numbers(kept))
    return Figures(
        first=first.value,
        low=first.low,
        high=first.high,
        rates_g=tuple(float((kept_S >= place).mean()) for place in range(1, drafted + 1)),
        tokens_per_step=1 + float(kept_S.mean()),
    )


def _of_share(mean: DocumentMean, drafted: int) -> Figures:
    """Of a share, as if drafts failed independently."""
    return Figures(
        first=mean.value,
        low=mean.low,
        high=mean.high,
        rates_g=tuple(mean.value**place for place in range(1, drafted + 1)),
        tokens_per_step=tokens_per_step(mean.value, drafted),
    )


def _of_foretold(foretold: Foretold, drafted: int) -> Figures:
    if foretold.value is None:
        return Figures(first=None, low=foretold.low, high=foretold.high, rates_g=None, tokens_per_step=None)
    mean = DocumentMean(value=foretold.value, low=foretold.low, high=foretold.high)
    return _of_share(mean, drafted)


def _mean(values: Sequence[NDArray[np.float64]]) -> DocumentMean:
    return document_mean(np.concatenate(values), _numbers(values))


def _numbers(values: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The number of its text for each value."""
    return np.repeat(np.arange(len(values)), [len(each) for each in values])
