"""Which rounds' texts a phase trains on, and how much of it they are: DistiLLM's buffer and its adaptive share."""

from collections.abc import Sequence

from logitcask_consumer.rounds.state import RoundState


def rounds_in_buffer(rounds: Sequence[RoundState], number: int, kept: int) -> list[RoundState]:
    """The latest rounds up to this one that have a cask, the oldest first.

    Args:
        rounds: of the run.
        number: of the round whose phase it is.
        kept: most rounds.
    """
    with_cask = [own for own in rounds[:number] if own.cask is not None]
    return with_cask[-kept:]


def next_share(share: float, *, before: float, after: float, by: float) -> float:
    """Lambda of the next round: raised by `by` where the held-out loss rose, at most 1.

    DistiLLM (arXiv 2402.03898), algorithm 1, which raises its probability by 1/N whenever the validation loss is above
    the last one; it never falls.

    Args:
        share: lambda of this round.
        before: held-out loss before its phase, nats.
        after: and after it.
        by: 1/N.
    """
    return min(share + by, 1.0) if after > before else share
