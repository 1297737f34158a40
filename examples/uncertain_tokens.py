"""Print where a teacher was least certain, from a cask alone: `python uncertain_tokens.py CASK [--tokens N]`.

Reads the memory-mapped shards with numpy; neither torch nor a model is needed.
"""

import argparse

import numpy as np

from logitcask import Cask


def main() -> None:
    """Find the positions of the highest entropy, and what the teacher thought there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cask", help="folder or URL of a cask")
    parser.add_argument("--tokens", type=int, default=10)
    options = parser.parse_args()

    cask = Cask.open(options.cask)
    rows = []
    for number in range(len(cask)):
        document = cask.read(number)
        records = document.records
        heads = np.split(records.head_ids_H, np.cumsum(records.head_counts_P, dtype=np.int64)[:-1])
        for position in np.argsort(-records.entropy_P)[: options.tokens]:
            rows.append((float(records.entropy_P[position]), number, int(position), heads[position][:5].tolist()))
    for entropy, number, position, ids in sorted(rows, reverse=True)[: options.tokens]:
        print(f"document {number}, position {position}: {entropy:.2f} nats, most probable ids {ids}")


if __name__ == "__main__":
    main()
