"""Rows of hints in the form in which they are stored, and the codecs between them and the teacher's numbers.

Shape legend: R rows, K layers, D width of the teacher's vectors, W numbers that are stored of one (D, or N of
`proj:N`), O outlier channels (4, or D where that is less), G groups of 64 channels of `i8`, the last one shorter, and 1
of the other codecs.

A row is coded by itself, each of its layers too, in steps that every device rounds alike: what a row gives depends
neither on its neighbours nor on where it was coded. Only the sums of a projection may differ in their last bit.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.hint_spec import GROUP, OUTLIERS, HintSpec, num_groups

MAX_WIDTH: Final = 1 << 16
"""Channels are stored as uint16."""
F16_EXPONENT: Final = 15
"""A row's largest number is scaled into [2^14, 2^15): half the range of float16, wherever the row lies in float32."""
MIN_EXPONENT: Final = -126
"""Of a scale, which is a normal float32."""
F16_LARGEST: Final = 32_752 * 2.0**113
"""The largest number that codec f16 gives back: the next one above it would be 2^128, beyond float32."""
I8_LEVELS: Final = 127
I8_LARGEST_SCALE: Final = (2**24 - 1) // I8_LEVELS * 2.0**104
"""So that 127 times it is within float32; float32's largest number is (2^24 - 1) 2^104."""
SMALLEST_NORMAL: Final = 2.0**-126
"""Of float32. A smaller scale has few bits: it is rounded up, so that 127 times it still reaches the largest number."""

HintCodes: TypeAlias = NDArray[np.float16] | NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class HintRows:
    """Encoded vectors: numbers are codes times their row's scale, but for outliers, which are stored as they are."""

    codes_RKW: HintCodes
    scales_RKG: NDArray[np.float32]
    """Per group of channels."""
    width: int
    """D."""
    outlier_channels_RKO: NDArray[np.uint16] | None = None
    """Of codec `i8`; the largest first."""
    outlier_values_RKO: NDArray[np.float32] | None = None

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.codes_RKW)

    @property
    def num_bytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is stored, by name in the order of the file; each begins with R."""
        arrays: dict[str, NDArray[Any]] = {"codes": self.codes_RKW, "scales": self.scales_RKG}
        if self.outlier_channels_RKO is not None and self.outlier_values_RKO is not None:
            arrays |= {"outlier_channels": self.outlier_channels_RKO, "outlier_values": self.outlier_values_RKO}
        return arrays

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray[Any]], width: int) -> "HintRows":
        """The rows of these arrays, named as in `arrays`."""
        return cls(
            codes_RKW=arrays["codes"],
            scales_RKG=arrays["scales"],
            width=width,
            outlier_channels_RKO=arrays.get("outlier_channels"),
            outlier_values_RKO=arrays.get("outlier_values"),
        )

    @classmethod
    def encode(cls, values_RKD: NDArray[Any], spec: HintSpec) -> "HintRows":
        """Code the teacher's vectors.

        Args:
            values_RKD: Finite; any float dtype. Read as float32.
            spec: Says how.

        Raises:
            InvalidRecordError: A number is not finite, or the vectors are too wide.
        """
        with np.errstate(over="ignore"):  # refused below
            values = np.ascontiguousarray(values_RKD, dtype=np.float32)
        width = values.shape[2]
        require_width(width)
        if not np.isfinite(values).all():
            raise InvalidRecordError(NOT_FINITE)
        if spec.codec == "i8":
            return _encode_i8(values)
        if spec.projected is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                values = values @ projection_DN(spec.seed, width, spec.projected)
            if not np.isfinite(values).all():
                raise InvalidRecordError(NOT_FINITE)
        _, exponents_RK = np.frexp(np.abs(values).max(axis=2, initial=0))
        scales_RK = np.ldexp(np.float32(1), np.maximum(exponents_RK - F16_EXPONENT, MIN_EXPONENT))
        scales_RK1 = scales_RK[..., None]
        clipped = np.clip(values, np.float32(-F16_LARGEST), np.float32(F16_LARGEST))
        return cls(codes_RKW=(clipped / scales_RK1).astype(np.float16), scales_RKG=scales_RK1, width=width)

    def decode(self) -> NDArray[np.float32]:
        """The vectors, [R, K, W]."""
        values: NDArray[np.float32] = self.codes_RKW.astype(np.float32)
        values *= self.scales_RKG if self.scales_RKG.shape[2] == 1 else _by_channel(self.scales_RKG, values.shape[2])
        if self.outlier_channels_RKO is not None and self.outlier_values_RKO is not None:
            np.put_along_axis(values, self.outlier_channels_RKO.astype(np.int64), self.outlier_values_RKO, axis=2)
        return values

    def slice(self, rows: slice) -> "HintRows":
        """Some rows, as views."""
        return self.of_arrays({name: array[rows] for name, array in self.arrays.items()}, self.width)

    def select(self, keep_R: NDArray[np.bool_]) -> "HintRows":
        """The rows of a mask, copied."""
        return self.of_arrays({name: array[keep_R] for name, array in self.arrays.items()}, self.width)

    @classmethod
    def join(cls, parts: "list[HintRows]") -> "HintRows":
        """The rows of all parts in order (at least one, all of one spec and width), copied."""
        names = parts[0].arrays
        arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in names}
        return cls.of_arrays(arrays, parts[0].width)

    def check(self, spec: HintSpec, num_positions: int, *, where: str) -> None:
        """Raise InvalidRecordError unless these are a document's rows as the spec has them.

        Args:
            spec: Of the cask.
            num_positions: Recorded ones of the document.
            where: What the error begins with.
        """
        rows, layout = spec.num_rows(num_positions), hint_layout(spec, self.width)
        if self.arrays.keys() != layout.keys():
            raise InvalidRecordError(
                f"{where}: hints of codec {spec.codec} have {', '.join(layout)}, got {', '.join(self.arrays)}"
            )
        for name, array in self.arrays.items():
            dtype, shape = layout[name]
            if array.dtype != dtype or array.shape != (rows, *shape):
                raise InvalidRecordError(
                    f"{where}: hints' {name} should be {dtype} of shape {[rows, *shape]}, got {array.dtype} of "
                    f"{list(array.shape)}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InvalidRecordError(f"{where}: hints' {name} hold a number that is not finite")
        if self.outlier_channels_RKO is not None and (self.outlier_channels_RKO >= self.width).any():
            raise InvalidRecordError(f"{where}: hints name an outlier channel beyond their width of {self.width}")


NOT_FINITE: Final = (
    "a hidden state of the teacher, or its projection, is not a finite number: its weights or its dtype overflow. Load "
    "the teacher in bfloat16 or float32"
)


def require_width(width: int) -> None:
    """Raise InvalidRecordError unless vectors of this width can be stored."""
    if not 1 <= width <= MAX_WIDTH:
        raise InvalidRecordError(f"hints have 1 to {MAX_WIDTH} numbers per layer, these {width}")


def hint_layout(spec: HintSpec, width: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and shape of one row of each stored array, by name in the order of the file."""
    layers, stored = len(spec.layers), spec.projected or width
    codes: np.dtype[Any] = np.dtype(np.int8) if spec.codec == "i8" else np.dtype("<f2")
    layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "codes": (codes, (layers, stored)),
        "scales": (np.dtype("<f4"), (layers, num_groups(width) if spec.codec == "i8" else 1)),
    }
    if spec.codec == "i8":
        outliers = (layers, min(OUTLIERS, width))
        layout |= {"outlier_channels": (np.dtype("<u2"), outliers), "outlier_values": (np.dtype("<f4"), outliers)}
    return layout


@lru_cache(maxsize=4)
def projection_DN(seed: int, width: int, projected: int) -> NDArray[np.float32]:
    """The matrix that codec `proj:N` multiplies with: entries +-1/sqrt(N), so that inner products stay unbiased.

    Achlioptas 2003, "Database-friendly random projections". Bits of Philox (numpy keeps its stream), keyed by seed and
    width; a matrix for fewer N is the beginning of one for more, but for the factor.

    Returns:
        [D, N], not to be written to.
    """
    words = np.random.Philox(key=[seed, width]).random_raw(-(-width * projected // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[: width * projected]
    signs_ND = (2 * bits.astype(np.float32) - 1).reshape(projected, width)
    matrix: NDArray[np.float32] = np.ascontiguousarray(signs_ND.T) * np.float32(projected**-0.5)
    matrix.flags.writeable = False
    return matrix


def _encode_i8(values: NDArray[np.float32]) -> HintRows:
    """The largest channel four times, then the rest in 255 levels a group; of equal ones the first is the largest."""
    rest, magnitudes = values.copy(), np.abs(values)
    channels, outliers = list[NDArray[np.int64]](), list[NDArray[np.float32]]()
    for _ in range(min(OUTLIERS, values.shape[2])):
        channel_RK1 = magnitudes.argmax(axis=2)[..., None]
        channels.append(channel_RK1)
        outliers.append(np.take_along_axis(values, channel_RK1, axis=2))
        # Below every magnitude, so that a row of zeros does not name its first channel four times.
        np.put_along_axis(magnitudes, channel_RK1, -1, axis=2)
        np.put_along_axis(rest, channel_RK1, 0, axis=2)
    starts = np.arange(0, values.shape[2], GROUP)
    largest_RKG: NDArray[np.float32] = np.maximum.reduceat(np.abs(rest), starts, axis=2)
    scales_RKG: NDArray[np.float32] = np.minimum(largest_RKG / np.float32(I8_LEVELS), np.float32(I8_LARGEST_SCALE))
    falls_short = (scales_RKG < SMALLEST_NORMAL) & (scales_RKG * np.float32(I8_LEVELS) < largest_RKG)
    scales_RKG = np.where(falls_short, np.nextafter(scales_RKG, np.float32(1)), scales_RKG)
    divisors = _by_channel(np.where(scales_RKG > 0, scales_RKG, np.float32(1)), values.shape[2])
    codes = np.clip(np.rint(rest / divisors), -I8_LEVELS, I8_LEVELS).astype(np.int8)
    return HintRows(
        codes_RKW=codes,
        scales_RKG=scales_RKG,
        width=values.shape[2],
        outlier_channels_RKO=np.concatenate(channels, axis=2).astype(np.uint16),
        outlier_values_RKO=np.concatenate(outliers, axis=2),
    )


def _by_channel(scales_RKG: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Each group's scale for all its channels, [R, K, D]."""
    return np.repeat(scales_RKG, GROUP, axis=2)[:, :, :width]
