"""The plots of a report: what goes into them, and the files they are written to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data import CaskDataset
from logitcask_consumer.report import plots
from logitcask_consumer.report.evaluate import Columns

PLOTTED_POSITIONS = 200_000
"""The curve of captured mass is drawn from at most this many positions."""


def draw(
    output: Path,
    dataset: CaskDataset,
    teacher: Columns,
    logs: Sequence[tuple[str, list[dict[str, Any]]]],
    document: dict[str, Any],
) -> dict[str, str]:
    """Write the plots as PNG files.

    Args:
        output: the folder, which exists.
        dataset: the held-out documents.
        teacher: the teacher's own figures.
        logs: label and lines of metrics.jsonl of each training run.
        document: the report.

    Returns:
        Name of each file -> the same plot as SVG, in the order in which the report shows them.
    """
    drawn = {}
    if any(model["metrics"] for model in document["models"]):
        drawn["headlines.png"] = plots.headlines(output / "headlines.png", document)
    if logs:
        named = [model for model in document["models"] if "kl" in model["metrics"]]
        held_out = {model["label"]: model["metrics"]["kl"]["value"] for model in named}
        drawn["loss_curve.png"] = plots.loss_curve(output / "loss_curve.png", logs, held_out)
    drawn["captured_mass.png"] = plots.captured_mass(
        output / "captured_mass.png", _cumulative_mass(dataset), teacher.values["entries"]
    )
    drawn["entropy.png"] = plots.entropy(
        output / "entropy.png", teacher.values["entropy"], document["buckets"]["entropy"]
    )
    drawn["frequency.png"] = plots.frequency(output / "frequency.png", document["buckets"]["frequency"])
    return drawn


def _cumulative_mass(dataset: CaskDataset) -> NDArray[np.float32]:
    """Exact mass of the k largest head entries of each position, [P, K], of the first documents."""
    cask, parts, left = dataset.casks[0], [], PLOTTED_POSITIONS
    for index in range(len(cask)):
        records = cask.read(index).records
        counts = records.head_counts_P.astype(np.int64)
        rows = np.repeat(np.arange(len(counts)), counts)
        columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        mass = np.zeros((len(counts), int(counts.max(initial=1))), dtype=np.float32)
        mass[rows, columns] = np.exp(records.head_logprobs_H.astype(np.float32))
        parts.append(np.cumsum(-np.sort(-mass, axis=1), axis=1))
        left -= len(counts)
        if left <= 0:
            break
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), mode="edge") for part in parts])
