"""Random chunk targets for tests, and the chunk losses by their definitions on dense float64 distributions."""

import numpy as np
import torch

from logitcask_consumer.cross_tokenizer.target import ChunkTarget


def random_target(
    *, rows: int = 23, vocab: int = 40, top: int = 6, seed: int = 0, teacher_vocab: int = 50
) -> tuple[ChunkTarget, torch.Tensor]:
    """Windows of rows with chunks of one to four rows between rows that are in none."""
    rng = np.random.default_rng(seed)
    bounds: list[tuple[int, int]] = []
    at = int(rng.integers(0, 3))
    while at < rows - 1:
        stop = min(at + int(rng.integers(1, 5)), rows)
        bounds.append((at, stop))
        at = stop + int(rng.integers(0, 5) == 0)
    starts, stops = (np.array(x, dtype=np.int64) for x in zip(*bounds, strict=True))
    count = len(starts)
    chunk_of = np.full(rows, count)
    for number, (start, stop) in enumerate(bounds):
        chunk_of[start:stop] = number
    closes = (stops < rows) & (rng.random(count) < 0.8)
    teacher = np.sort(rng.dirichlet(np.full(teacher_vocab, 0.2), count))[:, ::-1]
    counts = rng.integers(0, top + 1, count)
    top_probs = np.where(np.arange(top) < counts[:, None], teacher[:, :top], 0.0)
    return ChunkTarget(
        next_ids_R=torch.from_numpy(rng.integers(0, vocab, rows)),
        counted_R=torch.from_numpy(rng.random(rows) < 0.9),
        chunk_of_R=torch.from_numpy(chunk_of),
        chunk_starts_C=starts,
        chunk_stops_C=stops,
        closing_rows_C=torch.from_numpy(np.where(closes, stops, 0)),
        closes_C=torch.from_numpy(closes),
        teacher_logprobs_C=torch.from_numpy(-rng.exponential(3.0, count)),
        closing_logmass_C=torch.from_numpy(np.where(closes, np.log(rng.uniform(0.1, 1.0, count)), 0.0)),
        pair_rows_P=torch.from_numpy(starts),
        pair_rows=starts,
        top_probs_PK=torch.from_numpy(top_probs),
        top_counts_P=torch.from_numpy(counts),
    ), torch.from_numpy(teacher.copy())


def dense_alm(
    logits: torch.Tensor,
    target: ChunkTarget,
    closing_V: torch.Tensor,
    *,
    temperature: float = 100.0,
    divergence: str = "kl",
    debias: bool = True,
) -> torch.Tensor:
    """Chunk by chunk, with plain probabilities."""
    log_p = torch.log_softmax(logits, -1)
    out: list[torch.Tensor] = []
    for c, (start, stop) in enumerate(zip(target.chunk_starts_C, target.chunk_stops_C, strict=True)):
        likelihood = torch.stack([log_p[row, target.next_ids_R[row]] for row in range(start, stop)]).sum()
        teacher = target.teacher_logprobs_C[c]
        if debias and target.closes_C[c]:
            likelihood = likelihood + log_p[stop].exp()[closing_V].sum().log()
            teacher = teacher + target.closing_logmass_C[c]
        t, p = (torch.exp(x / temperature - 1e-6) for x in (teacher, likelihood))
        if divergence == "reverse_kl":
            t, p = p, t
        if divergence == "tvd":
            out.append(temperature * (t - p).abs())
        else:
            out.append(temperature * (t * (t / p).log() + (1 - t) * ((1 - t) / (1 - p)).log()))
    return torch.stack(out)


def dense_uld(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Sum of |t_(i) - p_(i)| of whole distributions, the shorter filled with zeros, per row."""
    width = max(teacher.shape[1], student.shape[1])
    t, p = (
        torch.nn.functional.pad(x, (0, width - x.shape[1])).sort(-1, descending=True).values for x in (teacher, student)
    )
    return (t - p).abs().sum(-1)
