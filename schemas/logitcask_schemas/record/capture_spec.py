"""What to keep of the teacher's distribution at each position: the capture spec."""

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.hint_spec import HintSpec

CaptureMode = Literal["threshold", "topk", "sampled"]
LogprobCodec = Literal["f16", "f32", "u8", "u8all"]
Sampler = Literal["systematic", "multinomial"]
Entropy = Literal["exact", "at_least"]
MAX_ENTRIES = 255  # per-position counts are stored as uint8
NEGLIGIBLE_MASS: Final = 1e-6
"""Below this tail mass nothing is drawn."""
MIN_TAU: Final = NEGLIGIBLE_MASS
"""A smaller threshold would promise what capture does not do."""
DEFAULT_TAU: Final = 0.028
"""About 40 bytes per token in Arrow shards of a small teacher of English and code (docs/capture.md)."""
_UNUSED_TAU: Final = 0.05
"""What specs of modes without a threshold say, as they always did: requests and casks stay the same bytes."""
_FEW_DRAWS: Final = 32
"""Limit of the draws by default, where 1/tau of them are no more."""
MIN_TEMPERATURE: Final = 0.1
MAX_TEMPERATURE: Final = 100.0
"""Between these log Z_T is right to 1 % in every codec."""
TEMPERATURE_GAP: Final = 0.01
"""Least relative distance of a temperature from 1 and from the others: log Z_T vanishes at T = 1."""
MAX_TEMPERATURES: Final = 16


def default_tail_max(mode: str, tau: float) -> int:
    """The default limit of the tail's draws: as many as tau asks for, as far as a record can hold them.

    Where 1/tau is at most 32 that is 32 and not more, so that specs stay equal to those of casks made before smaller
    thresholds got another limit.
    """
    return MAX_ENTRIES if mode == "threshold" and tau * _FEW_DRAWS < 1 - 1e-9 else _FEW_DRAWS


Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, allow_inf_nan=False)]


class CaptureSpec(BaseModel):
    """How one position's distribution t (temperature 1, whole vocabulary) becomes a record.

    Modes:
        threshold: head = {argmax} and every token with t >= tau (at most `head_max`); the tail is sampled with
            n = min(ceil(r / tau), tail_max) draws. Inclusion proportional to size with one global threshold minimises
            the total variance for an entry budget.
        topk: head = the k largest; no draws; r feeds a ghost bucket. Also that of records which another tool made
            (`imported`).
        sampled: head = {y} only; `draws` draws from the rest (random-sampling KD, arXiv 2503.16870).

    In every mode the head also holds the realised next token y and `pinned_ids`; of imported records it may lack y.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: CaptureMode = "threshold"
    tau: Annotated[float, Field(ge=MIN_TAU, le=1, allow_inf_nan=False)] = DEFAULT_TAU
    """Probability threshold of mode `threshold`, also the mass one tail draw stands for at most."""
    head_max: Annotated[int, Field(ge=1, le=MAX_ENTRIES - 1)] = 64
    """Most tokens the threshold may put into the head; the excess falls into the tail, which stays unbiased."""
    tail_max: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = MAX_ENTRIES
    """Most tail draws of mode `threshold`. Unless given what tau asks for: 32, and 255, the most there may be, for tau
    below 1/32."""
    k: Annotated[int, Field(ge=1, le=MAX_ENTRIES - 1)] = 64
    """Head size of mode `topk`."""
    draws: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = 50
    """Tail draws of mode `sampled`."""
    sampler: Annotated[Sampler, Field(exclude_if=lambda sampler: sampler == "systematic")] = "systematic"
    """How the tail is drawn in modes `threshold` and `sampled`. `systematic`: points at equal distances with one random
    offset. `multinomial`: independent draws with replacement, as random-sampling KD is published; more variance. Not
    written where it is `systematic`, so that casks made before it existed keep their bytes and identity."""
    pinned_ids: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**24)], ...], Field(max_length=MAX_ENTRIES)] = ()
    """Token ids always stored exactly (end of text, tool tokens)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Key of the counter-based generator behind the draws."""
    logprob_codec: LogprobCodec = "f16"
    """Storage of log-probabilities, log r and entropies (nats). `u8`: log-probabilities of head and draws in one byte,
    rounded at random so that probabilities are unbiased, the rest float16; `u8all`: log r and entropies in one byte too
    (docs/format.md, section 4.4)."""
    tail_logprobs: bool = False
    """Also store log t of every tail draw (needed for value estimates of most divergences, not to train)."""
    temperatures: Annotated[tuple[Temperature, ...], Field(max_length=MAX_TEMPERATURES)] = ()
    """Temperatures T for which log Z_T = log sum_j t_j^(1/T) is stored: all different, none of them 1 (by 1 % each)."""

    entropy: Annotated[Entropy, Field(exclude_if=lambda entropy: entropy == "exact")] = "exact"
    """What is stored as the entropy. `exact`: H(t). `at_least`, of mode `topk`: that of head and one bucket, a lower
    bound, which is all that can be told by a teacher which gives its k largest and no more (one that is served
    elsewhere); its tail mass is then 1 less the head's, to the precision of that sum. Not written where it is `exact`,
    so that casks made before it existed keep their bytes and identity."""
    imported: Annotated[bool, Field(exclude_if=lambda imported: not imported)] = False
    """Of mode `topk`: the records were made from the k largest that another tool kept. A head holds y only where it is
    among these; the tail mass is 1 less their sum; the entropy is that of head and one bucket, a lower bound of H(t).
    Not written where it is false, so that casks made before it existed keep their bytes and identity."""
    hints: Annotated[HintSpec | None, Field(exclude_if=lambda hints: hints is None)] = None
    """What is kept of the teacher beside its distributions, in a file beside each shard (docs/hints.md). Not written
    where it is None, so that casks made before it existed keep their bytes and identity."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, fields: Any) -> Any:
        """Defaults of tau and `tail_max`, which depend on other fields; what is no number as tau is refused as that."""
        if not isinstance(fields, dict):
            return fields
        mode = fields.get("mode", "threshold")
        fields = {"tau": DEFAULT_TAU if mode == "threshold" else _UNUSED_TAU, **fields}
        try:
            tau = float(fields["tau"])
        except (TypeError, ValueError):
            return fields
        return {"tail_max": default_tail_max(mode, tau), **fields}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.imported and self.hints is not None:
            raise ValueError("imported records have no hints: nobody ran the teacher's layers")
        if self.imported and self.mode != "topk":
            raise ValueError(f"imported records are those of mode topk, not of {self.mode}")
        if self.entropy != "exact" and (self.mode != "topk" or self.temperatures or self.imported):
            raise ValueError(
                f"entropy {self.entropy} is for mode topk without temperatures, captured from a teacher that gives no "
                f"more than its k largest; this spec has mode {self.mode}, temperatures {list(self.temperatures)}, "
                f"imported {str(self.imported).lower()}"
            )
        largest = {"threshold": self.head_max, "topk": self.k, "sampled": 0}[self.mode] + 1 + len(self.pinned_ids)
        if largest > MAX_ENTRIES:
            raise ValueError(
                f"a head of up to {largest} entries (head limit + next token + {len(self.pinned_ids)} pinned ids) "
                f"does not fit a position's limit of {MAX_ENTRIES}; pin fewer ids or lower head_max/k"
            )
        if len(set(self.pinned_ids)) != len(self.pinned_ids):
            raise ValueError(f"pinned_ids holds duplicates: {self.pinned_ids}")
        self._require_distinct_temperatures()
        return self

    def _require_distinct_temperatures(self) -> None:
        if 1.0 in self.temperatures:
            raise ValueError("temperatures holds 1.0, for which log Z is 0 by definition; leave it out")
        for lower, upper in pairwise(sorted((*self.temperatures, 1.0))):
            if upper - lower < TEMPERATURE_GAP * lower * (1 - 1e-9):
                raise ValueError(
                    f"temperatures {lower:g} and {upper:g} are less than {TEMPERATURE_GAP:.0%} apart (1 counts "
                    "as one of them); leave one of them out"
                )

    def require_vocabulary(self, vocab_size: int, *, entropy: Entropy = "exact") -> None:
        """Raise CaptureSpecError where a teacher of this vocabulary cannot do what the spec asks for.

        Args:
            vocab_size: of the teacher's logits.
            entropy: what the teacher can tell of its entropy.
        """
        if self.entropy != entropy:
            raise CaptureSpecError(
                "entropy at_least is for teachers that are served elsewhere (serve --engine openai); this one sees its "
                "whole distribution: leave the option out"
                if self.entropy == "at_least"
                else "this teacher gives its k largest log-probabilities only, so that its entropy is known as a lower "
                f"bound: submit with --mode topk --k {self.k} --entropy at_least"
            )
        if self.imported:
            raise CaptureSpecError(
                "imported is for records that another tool made (logitcask cask convert); leave it out to capture"
            )
        if outside := [token for token in self.pinned_ids if token >= vocab_size]:
            raise CaptureSpecError(f"pinned ids {outside} are outside the teacher's vocabulary of {vocab_size}")

    @property
    def entropy_is_bound(self) -> bool:
        """Whether records hold a lower bound of H(t) in its place."""
        return self.imported or self.entropy == "at_least"

    @property
    def unused(self) -> frozenset[str]:
        """Fields that do not matter in this mode."""
        unused = {
            "threshold": {"k", "draws"},
            "topk": {"tau", "head_max", "tail_max", "draws", "sampler", "seed", "tail_logprobs"},
            "sampled": {"tau", "head_max", "tail_max", "k"},
        }[self.mode]
        if self.logprob_codec in ("u8", "u8all"):
            unused -= {"seed"}  # it decides how values are rounded, draws or not
        return frozenset(unused)

    def canonical(self) -> dict[str, object]:
        """The fields that matter in this mode, so that specs which capture the same bytes compare equal."""
        return self.model_dump(mode="json", exclude=set(self.unused))

    def at_tau(self, tau: float) -> Self:
        """The spec in mode `threshold` at another tau; `tail_max` follows it, unless it is not the one by default."""
        usual = {"tail_max"} if self.tail_max == default_tail_max(self.mode, self.tau) else set()
        return type(self).model_validate({**self.model_dump(exclude=usual), "mode": "threshold", "tau": tau})

    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of the spec."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()


def capture_spec(**fields: Any) -> CaptureSpec:
    """A capture spec with these fields, and the defaults for the rest.

    Args:
        fields: of `CaptureSpec`.

    Raises:
        CaptureSpecError: names every field that is unknown, out of its range, or of another mode.
    """
    try:
        spec = CaptureSpec(**fields)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in error.errors())
        raise CaptureSpecError("; ".join(faults)) from error
    # `tail_logprobs` is what held-out text is captured with, in any mode.
    if ignored := sorted(fields.keys() & spec.unused - {"seed", "tail_logprobs"}):
        raise CaptureSpecError(
            f"mode {spec.mode} does not use {' and '.join(ignored)}: leave out, or choose another mode"
        )
    return spec


class _StoredSpec(CaptureSpec):
    """A spec under the limits of the versions that wrote it: readers take what capture would refuse today."""

    tau: Annotated[float, Field(gt=0, le=1)] = 0.05
    pinned_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = ()

    def _require_distinct_temperatures(self) -> None:
        if 1.0 in self.temperatures:
            raise ValueError("temperatures holds 1.0")


def stored_spec(fields: Mapping[str, Any]) -> CaptureSpec:
    """The spec that an older version stored, whose limits may have been wider than today's.

    Args:
        fields: as in cask.json.

    Raises:
        ValidationError: no version would have written it.
    """
    try:
        return CaptureSpec.model_validate(fields)
    except ValidationError:
        stored = _StoredSpec.model_validate(fields)
        return CaptureSpec.model_construct(stored.model_fields_set, **dict(stored))
