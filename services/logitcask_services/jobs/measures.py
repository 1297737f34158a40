"""What running jobs measure of themselves, for `/metrics`: chunks, their publication, how long the teacher waited."""

from prometheus_client import Counter, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class Measures:
    """Of one service; in no registry until somebody puts them into one."""

    def __init__(self) -> None:
        self.chunk_seconds = Histogram(
            "logitcask_chunk_seconds", "From one committed chunk to the next", buckets=SECONDS, registry=None
        )
        self.publish_seconds = Histogram(
            "logitcask_publish_seconds",
            "Shard and transaction of one chunk, waiting for disk or database included",
            buckets=SECONDS,
            registry=None,
        )
        self.feed_wait_seconds = Counter(
            "logitcask_feed_wait_seconds",
            "Time in which the teacher was kept waiting because finished chunks were not yet published",
            registry=None,
        )

    @property
    def all(self) -> tuple[Histogram | Counter, ...]:
        """Every one of them."""
        return self.chunk_seconds, self.publish_seconds, self.feed_wait_seconds
