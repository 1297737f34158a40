"""Where training leads: a bigram softmax student trained to convergence on each kind of record, beside its teacher.

The teacher is a table of next-token distributions. Each context is seen at many positions, with its own next token y
(drawn from the teacher) and its own random number in the sampler; the student is a free table of logits that starts
uniform, and LBFGS runs until nothing moves. What is left between student and teacher is the record's doing, neither the
model's nor the optimizer's.

Records with "y" hold the next token exactly, as every cask does; those without are what a plain top-k store keeps.
Writes `results/toy_fixed_points.csv` (percentiles over contexts) and `docs/images/toy-fixed-points.png`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import Objective, SparseTarget
from report import Report

CONTEXTS, VOCAB, POSITIONS, K, TAU, DRAWS = 6, 40, 4000, 6, 0.1, 8
IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "toy-fixed-points.png"
Floats = NDArray[np.float64]
HEAD, TAIL, INK = "#2563eb", "#c2410c", "#22272e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A loss on a kind of record."""

    title: str
    loss: str
    mode: str
    with_y: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Rows of a target with the context of each, and its share of all positions."""

    target: SparseTarget
    contexts_T: Tensor
    weights_T: Tensor


ROWS = (
    Row(title="threshold, unbiased", loss="forward_kl", mode="threshold"),
    Row(title="sampled, unbiased", loss="forward_kl", mode="sampled"),
    Row(title="cross-entropy with y", loss="cross_entropy", mode="sampled"),
    Row(title="top-6 renormalised", loss="topk_renorm", mode="topk", with_y=False),
    Row(title="top-6 and y, renormalised", loss="topk_renorm", mode="topk"),
    Row(title="top-6 and ghost", loss="ghost_kl", mode="topk", with_y=False),
    Row(title="top-6 and y, ghost", loss="ghost_kl", mode="topk"),
)


def main() -> None:
    """Train on every row, print and write the figures, draw."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(CONTEXTS, VOCAB)) * 1.5
    t_CV = np.exp(logits - logits.max(1, keepdims=True))
    t_CV /= t_CV.sum(1, keepdims=True)
    y_CP = np.stack([rng.choice(VOCAB, POSITIONS, p=t) for t in t_CV])
    u_CP = rng.random((CONTEXTS, POSITIONS))
    head_CV = (-t_CV).argsort(1).argsort(1) < K
    report, found = Report(__file__, "torch", "numpy"), {}
    for row in ROWS:
        p_CV = found[row.title] = train(row.loss, records(row, t_CV, y_CP, u_CP))
        labels = {"record": row.title, "loss": row.loss}
        report.add("KL(teacher || student)", "nats", (t_CV * np.log(t_CV / p_CV)).sum(1), **labels)
        report.add("largest |p - t|", "probability", np.abs(p_CV - t_CV).max(1), **labels)
        report.add("mass of the top 6, p / t", "ratio", (p_CV * head_CV).sum(1) / (t_CV * head_CV).sum(1), **labels)
        tails = [x_CV / x_CV.sum(1, keepdims=True) for x_CV in (p_CV * ~head_CV, t_CV * ~head_CV)]
        report.add("distance of the tails' shapes", "TVD", np.abs(tails[0] - tails[1]).sum(1) / 2, **labels)
    report.write()
    draw(t_CV, head_CV, found)


def records(row: Row, t_CV: Floats, y_CP: NDArray[np.int64], u_CP: Floats) -> Records:
    """What the positions' records hold, context after context; equal ones are one row, weighted by their number."""
    ids_H, t_H, sizes_R, ids_N, draws_R, r_R, y_R, contexts_R, weights_R = ([] for _ in range(9))  # type: ignore[var-annotated]
    for context, (t_V, y_P, u_P) in enumerate(zip(t_CV, y_CP, u_CP, strict=True)):
        order = np.argsort(-t_V)
        size = {"threshold": int((t_V >= TAU).sum()) or 1, "topk": K, "sampled": 0}[row.mode]
        for y in np.unique(y_P) if row.with_y else [order[0]]:
            u_Y = u_P[y_P == y] if row.with_y else u_P
            head = order[:size] if y in order[:size] else np.append(order[:size], y)
            tail_V = t_V.copy()
            tail_V[head] = 0.0
            r = tail_V.sum()
            n = {"threshold": int(np.ceil(r / TAU)), "topk": 0, "sampled": DRAWS}[row.mode]
            points = (u_Y[:, None] + np.arange(n)) * (r / max(n, 1))
            drawn = np.searchsorted(np.cumsum(tail_V), points, side="right").clip(max=np.flatnonzero(tail_V)[-1])
            drawn, times = np.unique(drawn, axis=0, return_counts=True) if n else (drawn[:1], np.array([len(u_Y)]))
            ids_H.append(np.tile(head, len(times)))
            t_H.append(np.tile(t_V[head], len(times)))
            ids_N.append(drawn.ravel())
            weights_R.append(times)
            for column, value in ((sizes_R, len(head)), (draws_R, n), (r_R, r), (y_R, y), (contexts_R, context)):
                column.append(np.full(len(times), value))
    head_offsets, tail_offsets = (np.concatenate([[0], np.cumsum(np.concatenate(x))]) for x in (sizes_R, draws_R))
    target = SparseTarget.from_columns(
        head_ids_H=torch.from_numpy(np.concatenate(ids_H)),
        head_logprobs_H=torch.from_numpy(np.log(np.concatenate(t_H))),
        head_offsets_R1=head_offsets,
        tail_ids_N=torch.from_numpy(np.concatenate(ids_N)),
        tail_offsets_R1=tail_offsets,
        log_tail_mass_R=torch.from_numpy(np.log(np.concatenate(r_R))),
        next_ids_R=torch.from_numpy(np.concatenate(y_R)),
        sampled_tail=row.mode != "topk",
        dtype=torch.float64,
    )
    contexts_T, weights_T = (torch.from_numpy(np.concatenate(column)) for column in (contexts_R, weights_R))
    return Records(target=target, contexts_T=contexts_T, weights_T=weights_T / weights_T.sum())


def train(loss: str, records: Records) -> Floats:
    """The student's distributions after training to convergence, [contexts, vocabulary]."""
    table_VC = torch.zeros(VOCAB, CONTEXTS, dtype=torch.float64, requires_grad=True)
    hidden_TC = torch.eye(CONTEXTS, dtype=torch.float64)[records.contexts_T]
    terms = Objective.parse(loss).terms(0.0)
    optimizer: Any = torch.optim.LBFGS(
        [table_VC], lr=1, max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        head = LMHead(weight_VD=table_VC)
        value = distillation_loss(hidden_TC, head, records.target, terms, weights_T=records.weights_T).loss
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)
    return torch.softmax(table_VC.detach().T, -1).numpy()


def draw(t_CV: Floats, head_CV: NDArray[np.bool_], found: dict[str, Floats]) -> None:
    """Student against teacher, token by token, one panel per row."""
    shown = [title for title in found if title != "cross-entropy with y"]
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "text.color": INK, "font.size": 9}):
        figure = Figure(figsize=(9.6, 6.2), layout="constrained")
        panels = figure.subplots(2, 3, sharex=True, sharey=True).T.ravel()
        low = t_CV.min() / 3
        for axes, title in zip(panels, shown, strict=True):
            p_CV = found[title].clip(min=low)
            axes.plot([low, 1], [low, 1], color="#8a94a3", linewidth=0.8, zorder=0)
            for chosen_CV, colour, name in ((head_CV, HEAD, "the 6 likeliest"), (~head_CV, TAIL, "all other tokens")):
                axes.scatter(t_CV[chosen_CV], p_CV[chosen_CV], s=9, color=colour, alpha=0.6, linewidths=0, label=name)
            kl = (t_CV * np.log(t_CV / found[title])).sum(1).mean()
            axes.set_title(f"{title}\nKL {kl:.2g} nats", loc="left", fontsize=9)
            axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low * 0.8, 1))
        for axes in panels[1::2]:
            axes.set_xlabel("teacher's probability")
        for axes in panels[:2]:
            axes.set_ylabel("student's, after convergence")
        panels[0].legend(frameon=False, loc="upper left", fontsize=8)
        figure.savefig(IMAGE, dpi=150)


if __name__ == "__main__":
    main()
