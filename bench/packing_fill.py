"""How full training sequences are: real documents, packed as `logitcask train` packs them, beside the most possible.

Documents are the Python standard library's, by SmolLM2's tokenizer: single docstrings, pieces of 400, 600, 1,000 (the
demonstration's) and 1,600 characters, whole modules, which are cut into windows. No packing needs fewer sequences than
two bounds say, which count windows that cannot stand together: L2 of Martello and Toth (1990, Discrete Appl. Math. 28,
59), and the dual feasible functions u(k) of Fekete and Schepers (2001, Math. Program. 91, 11). Promised are 98 % where
they allow it.

    python bench/packing_fill.py

Shape legend: D documents, W windows.
"""

import ast
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import transformers
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo.corpus import docstrings, module_files, pieces
from demo.fetch_teacher import fetch_model
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import Packs, Windows, pack_best_fit, pack_fullest
from logitcask_consumer.data.packing import pack_groups
from report import Report, seconds

SEQUENCE_LENGTHS: Final = (512, 1_024, 2_048, 8_192)
SHARD_DOCUMENTS: Final = 500
SEED: Final = 0
REPEATS: Final = 5
HEURISTICS: Final[dict[str, Callable[..., Packs]]] = {
    "best fit": pack_best_fit,
    "fullest, large windows": partial(pack_fullest, beside="large"),
    "fullest, small windows": partial(pack_fullest, beside="small"),
}
MOST_PARTS: Final = 40


def texts() -> dict[str, list[str]]:
    """The documents of each kind."""
    sources = [path.read_text(encoding="utf-8") for path in module_files()]
    said = [docstrings(ast.parse(source)) for source in sources]
    return {
        "docstrings": list(dict.fromkeys(part for text in said for part in text.split("\n\n") if part.strip())),
        **{
            f"pieces of {characters:,} characters": list(
                dict.fromkeys(part for text in [*said, *sources] for part in pieces(text, characters))
            )
            for characters in (400, 600, 1_000, 1_600)
        },
        "modules": [source for source in sources if source.strip()],
    }


def fewest_sequences(slots_W: NDArray[np.int64], capacity: int) -> int:
    """A number of sequences below which no packing comes.

    Args:
        slots_W: slots of each window, 1 to capacity.
        capacity: slots of a sequence.
    """
    return max(_apart(slots_W, capacity), max(_by_shares(slots_W, capacity, parts) for parts in range(1, MOST_PARTS)))


def _apart(slots_W: NDArray[np.int64], capacity: int) -> int:
    """Martello and Toth's L2.

    For any k: windows above capacity - k stand alone but for windows below k; those above half of the capacity stand
    apart from each other; what is left of theirs is all that windows from k to half of the capacity have besides
    sequences of their own.
    """
    ordered_W = np.sort(slots_W)
    sums_W1 = np.concatenate([[0], np.cumsum(ordered_W)])
    half = int(np.searchsorted(ordered_W, capacity // 2, side="right"))  # windows of at most half
    least_k = np.concatenate([[0], np.unique(ordered_W[:half])])
    alone_k = np.searchsorted(ordered_W, capacity - least_k, side="right")  # the first above capacity - k
    from_k = np.searchsorted(ordered_W, least_k, side="left")
    apart_k = alone_k - half
    room_k = apart_k * capacity - (sums_W1[alone_k] - sums_W1[half])
    beyond_k = np.maximum(0, sums_W1[half] - sums_W1[from_k] - room_k)
    return int((len(ordered_W) - alone_k + apart_k + -(-beyond_k // capacity)).max())


def _by_shares(slots_W: NDArray[np.int64], capacity: int, parts: int) -> int:
    """Fekete and Schepers' u(k): a window above 1/(k + 1) of the capacity takes a whole number of k-th parts of it."""
    shares_W, rest_W = np.divmod(slots_W * (parts + 1), capacity)
    # In units of 1 / (parts * capacity) of a sequence, so that sums are exact.
    taken = int(np.where(rest_W == 0, slots_W * parts, shares_W * capacity).sum())
    return -(-taken // (parts * capacity))


def measure(report: Report, kind: str, positions_D: NDArray[np.int64], seq_len: int) -> None:
    """Rows of one kind of documents at one sequence length."""
    config = TrainConfig(casks=("cask",), student="model", output=Path("run"), seq_len=seq_len)
    windows = Windows.cut(positions_D, seq_len=seq_len, overlap=config.context)
    shards = np.bincount(np.arange(len(positions_D)) // SHARD_DOCUMENTS)
    packs, _ = pack_groups(windows, shards, seq_len, "best_fit", SEED)
    slots = int(windows.slots_W.sum())
    most = slots / (fewest_sequences(windows.slots_W, seq_len) * seq_len)
    note = f"{len(positions_D)} documents, median {np.median(positions_D):.0f} positions, {len(windows)} windows"
    labels = {"documents": kind, "seq_len": seq_len}
    report.add("fill", "share of slots", [slots / (len(packs) * seq_len)], note, **labels)
    for heuristic, packing in HEURISTICS.items():
        sequences = len(packing(windows.slots_W, capacity=seq_len))
        report.add(f"{heuristic}, ungrouped", "share of slots", [slots / (sequences * seq_len)], note, **labels)
    planning = seconds(lambda: pack_groups(windows, shards, seq_len, "best_fit", SEED), REPEATS)
    report.add("planned", "tokens/s", [int(positions_D.sum()) / each for each in planning], note, **labels)
    report.add("most possible", "share of slots", [most], note, **labels)
    report.add("one window to a sequence", "share of slots", [slots / (len(windows) * seq_len)], note, **labels)


def lengths(tokenizer: Any, documents: Sequence[str]) -> NDArray[np.int64]:
    """Positions of each document, one less than its tokens."""
    return np.array([len(ids) - 1 for ids in tokenizer(list(documents))["input_ids"]], dtype=np.int64)


def main() -> None:
    """Pack every kind of documents at every sequence length."""
    # Modules are longer than the model's context, of which the tokenizer would warn.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    tokenizer = transformers.AutoTokenizer.from_pretrained(fetch_model("smollm2-135m"))
    report = Report(__file__, "transformers")
    for kind, documents in texts().items():
        positions_D = lengths(tokenizer, documents)
        for seq_len in SEQUENCE_LENGTHS:
            measure(report, kind, positions_D, seq_len)
    report.write()


if __name__ == "__main__":
    main()
