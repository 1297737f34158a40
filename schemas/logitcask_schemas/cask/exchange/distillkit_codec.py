"""The compressed log-probabilities of DistillKit: exact values, a fitted curve and quantised residuals; packed ids.

The layout of a position's bytes, from its description in DistillKit (arcee-ai/DistillKit, `distillkit/compression`):
`exact_k` values, then the coefficients of a curve over ranks 0 .. k - exact_k - 1, then for each bin of residuals a
scale and `num_elements` integers of `element_bits` bits, filled up to a byte. With `delta_encoding` every value is the
difference to the one before it. Integers are packed from the highest bit to the lowest, ids in ceil(log2 d) bits.

Values are decoded in float64 whatever the cache computed in, which differs from DistillKit's own float32 by rounding.

Shape legend: P positions, B bytes of a position, K entries.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitcask_schemas.errors import CaskError, MissingExtraError

FloatName = Literal["float16", "bfloat16", "float32", "float64"]
_WIDTHS: Final = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_MAX_CONFIG_BYTES: Final = 1 << 20
_WINDOW: Final = 5
"""Bytes that hold any integer of up to 32 bits, wherever its first bit stands."""


class ResidualBin(BaseModel):
    """Some ranks whose residuals are quantised with one scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale_dtype: FloatName
    element_bits: Annotated[int, Field(ge=1, le=32)]
    num_elements: Annotated[int, Field(ge=1)]

    @property
    def packed_bytes(self) -> int:
        """Of the integers."""
        return (self.element_bits * self.num_elements + 7) // 8


class CompressionConfig(BaseModel):
    """DistillKit's `compression_config.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d: Annotated[int, Field(ge=2, le=2**24)]
    """Vocabulary size by which ids are packed."""
    k: Annotated[int, Field(ge=1)]
    exact_k: Annotated[int, Field(ge=0)]
    exact_dtype: FloatName = "float32"
    polynomial_terms: list[Literal["sqrt", "exp"] | Annotated[int, Field(ge=0, le=16)]] | None = None
    """Powers of the rank, or functions of it."""
    term_dtype: FloatName = "float32"
    residual_bins: list[ResidualBin]
    delta_encoding: bool = True
    error_diffusion: bool = False
    """How residuals were rounded; decoding does not depend on it."""
    normalize_t: bool = False
    """Whether ranks are scaled to 0 .. 1 before the curve is evaluated."""

    @model_validator(mode="after")
    def _decodable(self) -> Self:
        binned = sum(each.num_elements for each in self.residual_bins)
        if self.exact_k > self.k or binned > self.k - self.exact_k:
            raise ValueError(f"k = {self.k} ranks cannot hold {self.exact_k} exact ones and {binned} in bins")
        if self.polynomial_terms and _WIDTHS[self.term_dtype] < 4:
            raise ValueError(
                f"a curve in {self.term_dtype} depends on the device that evaluates it, and cannot be decoded "
                "faithfully here; float32 and float64 can"
            )
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """The config beside a cache.

        Raises:
            CaskError: there is none, or it is not one; names the fields.
            MissingExtraError: PyYAML is not installed.
        """
        try:
            import yaml
        except ModuleNotFoundError as error:
            raise MissingExtraError("logitcask cask convert --from distillkit", "trainer", "yaml") from error
        try:
            with path.open("rb") as file:
                fields = yaml.safe_load(file.read(_MAX_CONFIG_BYTES))
        except OSError as error:
            raise CaskError(
                f"{path} cannot be read ({error.strerror}); DistillKit writes it beside the Parquet files, and no row "
                "can be decoded without it. Name it with --compression-config"
            ) from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise CaskError(f"{path} is no YAML: {error}") from error
        if not isinstance(fields, dict):
            raise CaskError(
                f"{path} holds {type(fields).__name__ if fields is not None else 'nothing'}, expected the fields of "
                "DistillKit's compression config (d, k, exact_k, ...); name the right file with --compression-config"
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())
            raise CaskError(f"{path} is no compression config of DistillKit that can be decoded: {faults}") from error

    @property
    def id_bits(self) -> int:
        """Bits of a packed id."""
        return int(np.ceil(np.log2(np.float32(self.d))))

    @property
    def id_bytes(self) -> int:
        """Bytes of a position's ids."""
        return (self.k * self.id_bits + 7) // 8

    @property
    def logprob_bytes(self) -> int:
        """Bytes of a position's log-probabilities."""
        binned = sum(_WIDTHS[each.scale_dtype] + each.packed_bytes for each in self.residual_bins)
        return self.exact_k * _WIDTHS[self.exact_dtype] + len(self.polynomial_terms or ()) * self._term_bytes + binned

    @property
    def _term_bytes(self) -> int:
        return _WIDTHS[self.term_dtype]

    def ids(self, packed_PB: NDArray[np.uint8]) -> NDArray[np.uint32]:
        """Token ids of each position, [P, k], from bytes [P, id_bytes]."""
        return unpack(packed_PB, self.id_bits, self.k)

    def logprobs(self, bytes_PB: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The logarithm of t at each rank, [P, k], from bytes [P, logprob_bytes]."""
        values_PK = np.zeros((len(bytes_PB), self.k))
        at = self.exact_k * _WIDTHS[self.exact_dtype]
        values_PK[:, : self.exact_k] = _floats(bytes_PB[:, :at], self.exact_dtype)
        if self.polynomial_terms:
            stop = at + len(self.polynomial_terms) * self._term_bytes
            coefficients = _floats(bytes_PB[:, at:stop], self.term_dtype)
            values_PK[:, self.exact_k :] = coefficients @ self._curve().T
            at = stop
        rank = self.exact_k
        for each in self.residual_bins:
            scale_end = at + _WIDTHS[each.scale_dtype]
            scale_P1 = _floats(bytes_PB[:, at:scale_end], each.scale_dtype)
            at = scale_end + each.packed_bytes
            codes = unpack(bytes_PB[:, scale_end:at], each.element_bits, each.num_elements).astype(np.float64)
            centred = 2.0 * codes - 1.0 if each.element_bits == 1 else codes - 2.0 ** (each.element_bits - 1)
            values_PK[:, rank : rank + each.num_elements] += centred * scale_P1
            rank += each.num_elements
        return np.cumsum(values_PK, axis=1) if self.delta_encoding else values_PK

    def _curve(self) -> NDArray[np.float64]:
        """Every term at every rank, [k - exact_k, terms]."""
        ranks = self.k - self.exact_k
        points = np.linspace(0.0, 1.0, ranks) if self.normalize_t else np.arange(ranks, dtype=np.float64)
        functions = {"sqrt": np.sqrt, "exp": np.exp}
        columns = [
            functions[term](points) if isinstance(term, str) else points**term for term in self.polynomial_terms or ()
        ]
        return np.stack(columns, axis=1)


def unpack(packed_PB: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint32]:
    """Integers of up to 32 bits, [P, count], each from its highest bit to its lowest, from bytes [P, B]."""
    first = np.arange(count, dtype=np.int64) * bits
    padded = np.pad(packed_PB, ((0, 0), (0, _WINDOW)))
    windows = np.zeros((len(packed_PB), count), dtype=np.uint64)
    for byte in range(_WINDOW):
        windows = (windows << np.uint64(8)) | padded[:, first // 8 + byte].astype(np.uint64)
    shift = (8 * _WINDOW - bits - first % 8).astype(np.uint64)
    mask = np.uint64((1 << bits) - 1)
    integers: NDArray[np.uint32] = ((windows >> shift) & mask).astype(np.uint32)
    return integers


def _floats(bytes_PB: NDArray[np.uint8], name: FloatName) -> NDArray[np.float64]:
    """Little-endian floats, [P, n], from their bytes [P, n · width]."""
    content: NDArray[Any] = np.ascontiguousarray(bytes_PB)
    if name == "bfloat16":  # the upper half of a float32
        wide = content.view("<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).astype(np.float64)
    return content.view(np.dtype(name).newbyteorder("<")).astype(np.float64)
