"""The config of a model of some of its layers: whatever it says of a layer by number is said of the layer's new number.

Configs say which layer is of which kind in four ways, and all four can be carried over exactly:

    one item per layer          layer_types, no_rope_layers, a pattern string     the kept items
    numbers of layers           mlp_only_layers, moe_layers, attn_layer_indices   those kept, renumbered
    how many at the start, end  first_k_dense_replace, num_kv_shared_layers       how many of them are kept
    every n-th layer            decoder_sparse_step, attn_layer_period            where the kept ones are periodic too

Nothing here is believed: `layer_proof` compares the layers that a config makes with the teacher's.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

_FROM_THE_START: Final = (
    "first_k_dense_replace",
    "num_dense_layers",
    "num_first_full_attention_layers",
    "moe_layer_start_index",
    "max_window_layers",
)
_FROM_THE_END: Final = ("num_kv_shared_layers", "num_last_full_attention_layers")
_PERIODS: Final = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
"""Layers i with i % period == offset."""
_NOT_PER_LAYER: Final = ("token", "architectures", "label", "limit", "multipliers", "section", "languages")
"""Parts of names of lists that may happen to be as long as the model is deep."""
_NUMBERED: Final = ("layer", "idx", "indices")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLayers:
    """Which layers of how many."""

    numbers: tuple[int, ...]
    """Numbers in the teacher, ascending."""
    total: int
    """Layers of the teacher."""

    def config(self, config: Any) -> Any:
        """A copy of a transformers config for a model of the kept layers only.

        The copy is one in memory: JSON has no infinity, which some configs hold.
        """
        shallower = deepcopy(config)
        text = shallower.get_text_config()
        before = deepcopy(vars(text))
        changes = {name: self._changed(name, value) for name, value in before.items() if not name.startswith("_")}
        text.num_hidden_layers = len(self.numbers)
        for name, value in changes.items():
            if value is not None:
                setattr(text, name, value)
        self._nested(text, before)
        self._periodic(text, before)
        self._overridden(text, config.get_text_config())
        return shallower

    def renumbered(self, layers: Sequence[int]) -> list[int]:
        """New numbers of those among some layers that are kept."""
        return [new for new, old in enumerate(self.numbers) if old in layers]

    def _changed(self, name: str, value: Any) -> Any:
        """The field's value for the kept layers, or None where it does not depend on them."""
        if isinstance(value, list | tuple):
            return self._sequence(name, value)
        if isinstance(value, str) and "pattern" in name and len(value) == self.total:
            return "".join(value[i] for i in self.numbers)
        if type(value) is not int:
            return None
        if name in _FROM_THE_START:
            return sum(i < value for i in self.numbers)
        if name in _FROM_THE_END:
            return sum(i >= self.total - value for i in self.numbers)
        if name == "moe_layer_end_index":
            return sum(i <= value for i in self.numbers) - 1 if value >= 0 else value
        return None

    def _sequence(self, name: str, value: list[Any] | tuple[Any, ...]) -> Sequence[Any] | None:
        if any(part in name for part in _NOT_PER_LAYER):
            return None
        if name == "block_types" and value:  # repeated as often as there are layers
            return [value[i % len(value)] for i in self.numbers]
        if self._are_numbers(name, value):
            return self.renumbered(value)
        if len(value) == self.total:
            kept = [value[i] for i in self.numbers]
            return tuple(kept) if isinstance(value, tuple) else kept
        return None

    def _are_numbers(self, name: str, value: Sequence[Any]) -> bool:
        """Whether a list holds numbers of layers: ascending, and none beyond the last."""
        return (
            bool(value)
            and any(part in name for part in _NUMBERED)
            and all(type(item) is int for item in value)
            and list(value) == sorted(set(value))
            and value[0] >= 0
            and value[-1] < self.total
            and (len(value) < self.total or list(value) == list(range(self.total)))
        )

    def _nested(self, text: Any, before: dict[str, Any]) -> None:
        """GPT-Neo's kinds, written as groups with a number of repetitions."""
        if "attention_types" in before and isinstance(before.get("attention_layers"), list):
            text.attention_types = [[[before["attention_layers"][i]], 1] for i in self.numbers]

    def _overridden(self, text: Any, before: Any) -> None:
        """Fields that single layers have values of their own for (Gemma 4), by number of the layer."""
        overrides = before.to_dict().get("per_layer_config")
        if isinstance(overrides, dict) and overrides:
            of_layers = {int(number): fields for number, fields in overrides.items() if str(number).isdecimal()}
            text.per_layer_config = {new: of_layers[i] for new, i in enumerate(self.numbers) if i in of_layers}

    def _periodic(self, text: Any, before: dict[str, Any]) -> None:
        """Rules of the kind "every n-th layer"; those that the kept layers do not follow are left to the proof."""
        step = before.get("decoder_sparse_step")
        if isinstance(step, int) and step > 0 and isinstance(before.get("mlp_only_layers"), list):
            dense = [i for i in range(self.total) if i in before["mlp_only_layers"] or (i + 1) % step]
            text.decoder_sparse_step, text.mlp_only_layers = 1, self.renumbered(dense)
        for period, offset in _PERIODS:
            every, first = before.get(period), before.get(offset)
            if isinstance(every, int) and isinstance(first, int) and every > 0:
                chosen = _period([i % every == first for i in self.numbers])
                if chosen is not None:
                    setattr(text, period, chosen[0])
                    setattr(text, offset, chosen[1])


def _period(flags: Sequence[bool]) -> tuple[int, int] | None:
    """Period and offset at which the layers that are chosen follow each other, or None."""
    for period in range(1, len(flags) + 2):
        for offset in range(period):
            if flags == [j % period == offset for j in range(len(flags))]:
                return period, offset
    return None


def layer_fields(config: Any) -> dict[str, Any]:
    """Fields of a config that look as if they said something of layers by number, for messages."""
    parts = (
        "layer",
        "period",
        "pattern",
        "interval",
        "freq",
        "dense",
        "block_type",
        "idxs",
        "sparse_step",
        "kv_shared",
    )
    not_these = ("norm", "layerdrop", "scale_init", "activation", "num_hidden_layers", "dropout", "_eps")
    return {
        name: value
        for name, value in sorted(vars(config.get_text_config()).items())
        if not name.startswith("_")
        and any(part in name for part in parts)
        and not any(part in name for part in not_these)
        and value not in (None, False, [], {})
    }
