"""What to keep of a teacher beside its distributions: hidden states or attention projections of some layers.

Layers have the numbers of Hugging Face's `output_hidden_states`: 0 is the embeddings, k the output of block k (the
residual stream), and N, the number of blocks, what the head reads, so after the final norm. Of `v` and `qkv`, layer k
from 1 to N means the projections of block k's attention, before the rotary embedding.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitcask_schemas.errors import CaptureSpecError

HintKind = Literal["hidden", "v", "qkv"]
HintPositions = Literal["all", "last"]
MAX_LAYERS: Final = 64
MAX_DEPTH: Final = 4096
"""Blocks of a teacher."""
MAX_PROJECTED: Final = 4096
"""Numbers that a vector may be projected to."""
OUTLIERS: Final = 4
"""Channels of a row that codec i8 keeps as they are: residual streams have a few that are a thousand times the rest."""
GROUP: Final = 64
"""Channels of codec i8 that share a scale: one for a whole row loses up to 1.7 % of a residual stream, not 1 %."""
_SCALE_BYTES: Final = 4
_OUTLIER_BYTES: Final = 6

Layer = Annotated[int, Field(ge=-MAX_DEPTH, le=MAX_DEPTH)]


class HintSpec(BaseModel):
    """Which vectors of the teacher are stored, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    """Distinct. Negative ones count from the end, -1 is the last; those of a cask are resolved: ascending from 0."""
    of: HintKind = "hidden"
    """`hidden`: the residual stream; `v`: value vectors, heads end to end; `qkv`: query, key and value end to end."""
    codec: Annotated[str, Field(pattern=r"^(f16|i8|proj:[1-9][0-9]{0,3})$")] = "f16"
    """`f16`: float16 with a scale per row, a power of two. `i8`: bytes with a scale per 64 channels, and the 4 largest
    channels of the row as they are. `proj:N`: a random projection to N numbers, stored as f16 has them, which keeps
    inner products unbiased."""
    positions: HintPositions = "all"
    """`all`: one row per recorded position. `last`: one per document, at its last token."""
    seed: Annotated[int, Field(ge=0, lt=2**63, exclude_if=lambda seed: seed == 0)] = 0
    """Of the projection. Not written where it is 0."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"hints ask for a layer twice: {list(self.layers)}")
        if self.of != "hidden" and 0 in self.layers:
            raise ValueError(f"layer 0 is the embeddings, which have no {self.of}; layers from 1 on are blocks")
        if (size := self.projected) is not None and size > MAX_PROJECTED:
            raise ValueError(f"codec {self.codec} projects to more than {MAX_PROJECTED} numbers")
        if self.seed and self.projected is None:
            raise ValueError(f"hints have a seed for codec proj:N only, this is {self.codec}")
        return self

    @property
    def notation(self) -> str:
        """As `parse_hints` reads it."""
        fields: dict[str, object] = {"layers": ",".join(map(str, self.layers))}
        fields |= {"of": self.of, "codec": self.codec, "positions": self.positions}
        if self.seed:
            fields["seed"] = self.seed
        return " ".join(f"{name}={value}" for name, value in fields.items())

    @property
    def projected(self) -> int | None:
        """N of codec `proj:N`."""
        name, _, size = self.codec.partition(":")
        return int(size) if name == "proj" else None

    @property
    def is_resolved(self) -> bool:
        """Whether its layers are as a cask has them, not negative and ascending."""
        return self.layers[0] >= 0 and all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))

    def resolved(self, num_blocks: int) -> Self:
        """The spec with layers counted from 0 on, ascending.

        Args:
            num_blocks: Of the teacher, N.

        Raises:
            CaptureSpecError: A layer that the teacher has not, or two that are the same.
        """
        first = 0 if self.of == "hidden" else 1
        layers = sorted(layer + num_blocks + 1 if layer < 0 else layer for layer in self.layers)
        if layers[0] < first or layers[-1] > num_blocks:
            raise CaptureSpecError(
                f"hints ask for layers {list(self.layers)}; of {self.of} this teacher has {first} to {num_blocks}, or "
                f"-1 to {first - num_blocks - 1} from the end"
            )
        if len(set(layers)) != len(layers):
            raise CaptureSpecError(f"hints ask for a layer twice: {list(self.layers)} are {layers} of this teacher")
        return self.model_copy(update={"layers": tuple(layers)})

    def may_be(self, layers: tuple[int, ...]) -> bool:
        """Whether there is a number of blocks with which `resolved` gives these layers.

        Args:
            layers: Of a cask, from 0 on, ascending.
        """
        from_the_end = [layer for layer in self.layers if layer < 0]
        # One of the layers is the first that is counted from the end, which settles the number of blocks.
        depths = {layer - from_the_end[0] - 1 for layer in layers} if from_the_end else {MAX_DEPTH}
        for depth in depths:
            try:
                if depth > 0 and self.resolved(depth).layers == layers:
                    return True
            except CaptureSpecError:
                continue
        return False

    def num_rows(self, num_positions: int) -> int:
        """Rows of a document with so many recorded positions."""
        return num_positions if self.positions == "all" else 1

    def bytes_per_row(self, width: int) -> int:
        """Stored bytes of a row, which has a vector of each layer.

        Args:
            width: Numbers of one of the teacher's vectors.
        """
        if self.codec == "i8":
            each = width + num_groups(width) * _SCALE_BYTES + min(OUTLIERS, width) * _OUTLIER_BYTES
        else:
            each = 2 * (self.projected or width) + _SCALE_BYTES
        return len(self.layers) * each


def num_groups(width: int) -> int:
    """Groups of channels that codec i8 cuts a vector into."""
    return -(-width // GROUP)


def parse_hints(text: str) -> HintSpec:
    """The spec that a person wrote, such as "layers=10,20,-1 of=hidden codec=i8 positions=all".

    Args:
        text: `layers`, and fields of `HintSpec` that are not as by default; separated by blanks.

    Raises:
        CaptureSpecError: Names what is unknown, missing, given twice or out of its range.
    """
    example = "write, for example, layers=10,20,-1 codec=i8"
    fields = dict[str, object]()
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or name not in HintSpec.model_fields or name in fields:
            known = ", ".join(HintSpec.model_fields)
            raise CaptureSpecError(f"hints: {word!r} should be one of {known}, once, with = and a value; {example}")
        fields[name] = value.split(",") if name == "layers" else value
    try:
        return HintSpec.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise CaptureSpecError(f"hints: {where}{': ' if where else ''}{fault['msg']}; {example}") from error
