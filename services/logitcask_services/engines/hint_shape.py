"""Which hidden states and projections a teacher has: how many blocks, how wide their vectors are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintKind, HintSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class HintShape:
    """What the configuration says of the layers."""

    num_blocks: int
    hidden_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self | None:
        """From a config.json; None where it does not say, as that of a model without attention heads."""
        text = {**config, **(config.get("text_config") or {})}

        def number(*names: str) -> int | None:
            return next((value for name in names if isinstance(value := text.get(name), int)), None)

        blocks, hidden = number("num_hidden_layers", "n_layer"), number("hidden_size", "n_embd")
        heads = number("num_attention_heads", "n_head")
        if not blocks or not hidden or not heads:
            return None
        return cls(
            num_blocks=blocks,
            hidden_width=hidden,
            num_heads=heads,
            num_kv_heads=number("num_key_value_heads") or heads,
            head_dim=number("head_dim") or hidden // heads,
        )

    def width(self, of: HintKind) -> int:
        """Numbers of one vector."""
        if of == "hidden":
            return self.hidden_width
        if of == "v":
            return self.num_kv_heads * self.head_dim
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def resolve_hints(capture: CaptureSpec, shape: HintShape | None) -> CaptureSpec:
    """The spec with its hints' layers as this teacher counts them; the same one where it asks for none.

    Args:
        capture: What somebody asks for.
        shape: Of the teacher; None where it gives no hints.

    Raises:
        CaptureSpecError: The teacher has not these layers, or gives no hints at all.
    """
    if capture.hints is None:
        return capture
    if shape is None:
        raise CaptureSpecError(
            "hints are hidden states of the teacher's layers; one that is served elsewhere (serve --engine openai) "
            "shows none of them, nor does one whose configuration says nothing of its layers. Leave hints out, or "
            "serve the teacher with --engine vllm or transformers"
        )
    return capture.model_copy(update={"hints": capture.hints.resolved(shape.num_blocks)})


def hint_bytes_per_position(hints: HintSpec | None, shape: HintShape | None) -> float:
    """Stored bytes of hints per recorded position; 0 where there are none, or one row per document alone."""
    if hints is None or shape is None or hints.positions == "last":
        return 0.0
    return float(hints.bytes_per_row(shape.width(hints.of)))


def hint_bytes_per_document(hints: HintSpec | None, shape: HintShape | None) -> int:
    """Stored bytes of hints per document; 0 where there are none, or one row per position."""
    if hints is None or shape is None or hints.positions == "all":
        return 0
    return hints.bytes_per_row(shape.width(hints.of))
