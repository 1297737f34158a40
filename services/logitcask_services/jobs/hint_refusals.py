"""Hints that teachers could not be loaded with: a load in vain is not repeated for every job that asks for them."""

from logitcask_schemas.record.hint_spec import HintSpec


class HintRefusals:
    """Of the teachers of one service, by name. For the worker's thread."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, HintSpec], str] = {}

    def add(self, name: str, hints: HintSpec, reason: str) -> None:
        """The teacher could be loaded, but not with these."""
        self._reasons[name, _plain(hints)] = reason

    def why(self, name: str, hints: HintSpec) -> str | None:
        """Why a teacher could not be loaded with hints; None where that was never tried, or could be done."""
        return self._reasons.get((name, _plain(hints)))

    def left_of(self, name: str, hints: HintSpec | None) -> HintSpec | None:
        """What a teacher is to be loaded with where these are asked for."""
        return None if hints is None or self.why(name, hints) is not None else _plain(hints)


def _plain(hints: HintSpec) -> HintSpec:
    """What of hints a teacher is loaded for: their layers, not how they are stored."""
    return HintSpec(layers=hints.layers, of=hints.of)
