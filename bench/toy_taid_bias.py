"""How far taid's gradient from records is from the dense one, by the distance of the student and by l.

Random teachers over 2,000 tokens (standard deviation of the logits 3), records of mode threshold; students are the
teacher's logits plus noise of some nats, or uniform. The gradient for the logits is averaged over every record that the
sampler's uniform can give, by probability: what is left is bias. Relative to the dense gradient p - q, q the
interpolated softmax. `ghost` is the same loss with the tail as one bucket. Percentiles over teachers, written to
`results/toy_taid_bias.csv`.
"""

import numpy as np
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import SparseTarget, get_loss
from report import Report

VOCAB, TEACHERS = 2000, 6


def main() -> None:
    """Measure and write."""
    report = Report(__file__, "torch", "numpy")
    for tau in (0.05, 0.02):
        for distance in (0.3, 1.0, 2.0, None):
            rng = np.random.default_rng(0)
            pairs = [pair(rng, distance) for _ in range(TEACHERS)]
            for share in (0.4, 0.7, 0.9):
                for tail in ("draws", "ghost"):
                    found = [bias(x, z, share, tail, tau) for x, z in pairs]
                    student = "uniform" if distance is None else f"{distance:g} nats away"
                    report.add("bias / dense gradient", "ratio", found, student=student, tau=tau, l=share, tail=tail)
    report.write()


def pair(rng: np.random.Generator, distance: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a teacher and logits of a student, [V] each."""
    logits = rng.normal(size=VOCAB) * 3.0
    student = np.zeros(VOCAB) if distance is None else logits + distance * rng.normal(size=VOCAB)
    return torch.log_softmax(torch.from_numpy(logits), 0), torch.from_numpy(student)


def bias(x_V: torch.Tensor, z_V: torch.Tensor, share: float, tail: str, tau: float) -> float:
    """|E gradient - dense gradient| / |dense gradient|."""
    weight_V1 = z_V[:, None].clone().requires_grad_()
    target, chance_T = records(x_V.exp().numpy(), tau)
    ones_T1 = torch.ones(len(chance_T), 1, dtype=torch.float64)
    terms = [(1.0, get_loss(f"taid:start={share},tail={tail}"))]
    mean = distillation_loss(ones_T1, LMHead(weight_VD=weight_V1), target, terms, weights_T=chance_T).loss
    (got_V1,) = torch.autograd.grad(mean, weight_V1)
    want_V = torch.softmax(z_V, 0) - torch.softmax((1 - share) * torch.log_softmax(z_V, 0) + share * x_V, 0)
    return float((got_V1[:, 0] - want_V).norm() / want_V.norm())


def records(t_V: np.ndarray, tau: float) -> tuple[SparseTarget, torch.Tensor]:
    """All records that one position can have, and the probability of each.

    A draw moves to the next token where (u + i) r / n crosses the cumulative mass; between crossings nothing changes.
    """
    order = np.argsort(-t_V)
    head = order[: max(1, int((t_V >= tau).sum()))]
    tail_V = t_V.copy()
    tail_V[head] = 0.0
    r, mass_V = tail_V.sum(), np.cumsum(tail_V)
    n = min(int(np.ceil(r / tau)), 32)
    edges = np.unique(np.concatenate([[0.0, 1.0], mass_V * n / r % 1.0]))
    chance_T, u_T = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    rows = len(u_T)
    drawn = np.searchsorted(mass_V, (u_T[:, None] + np.arange(n)).ravel() * r / n, side="right")
    drawn = drawn.clip(max=np.flatnonzero(tail_V)[-1])
    target = SparseTarget.from_columns(
        head_ids_H=torch.from_numpy(np.tile(head, rows)),
        head_logprobs_H=torch.from_numpy(np.log(np.tile(t_V[head], rows))),
        head_offsets_R1=np.arange(rows + 1) * len(head),
        tail_ids_N=torch.from_numpy(drawn),
        tail_offsets_R1=np.arange(rows + 1) * n,
        log_tail_mass_R=torch.full((rows,), float(np.log(r)), dtype=torch.float64),
        next_ids_R=torch.full((rows,), int(head[0])),
        sampled_tail=True,
        tail_logprobs_N=torch.from_numpy(np.log(t_V[drawn])),
        dtype=torch.float64,
    )
    return target, torch.from_numpy(chance_T)


if __name__ == "__main__":
    main()
