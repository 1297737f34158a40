"""What plans stand on, against the figures of the benchmarks: sizes within a few percent, constants to the digit."""

import csv
from pathlib import Path

import pytest

from logitcask_schemas.planning.cask_size import PACKED_RATIO, bytes_per_token
from logitcask_schemas.planning.entries import MEASURED_ENTROPY, ExpectedEntries, expected_entries
from logitcask_schemas.planning.plan import CAPTURE_RATIO, PREPARE_MICROSECONDS, RUN_MICROSECONDS
from logitcask_schemas.record.capture_spec import CaptureSpec

RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results"


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_constants_are_those_of_the_files() -> None:
    """Whoever measures anew writes the new figures into planning/plan.py, and into docs/planning.md."""
    overhead = {row["metric"]: float(row["p50"]) for row in rows("service_overhead")}
    assert overhead["prepare (CPU us/token)"] == PREPARE_MICROSECONDS
    assert overhead["run (CPU us/token)"] == RUN_MICROSECONDS
    ratio = {(row["variant"], row["metric"]): float(row["p50"]) for row in rows("capture")}
    assert round(ratio["capture-20", "throughput / drop (ratio)"], 3) == CAPTURE_RATIO
    shards = {
        (row["source"], row["form"]): float(row["p50"]) for row in rows("packed_record") if row["metric"] == "shards"
    }
    for tau in ("1/20", "1/50", "1/95"):
        packed, flat = (shards[f"smollm2-135m {tau}", f"{form} u8all"] for form in ("packed", "flat"))
        assert packed / flat == pytest.approx(PACKED_RATIO, abs=0.006)


CASKS = [
    (row["variant"].split()[1], row["variant"].split()[2], float(row["p50"]))
    for row in rows("cask_bytes")
    if row["variant"].startswith("record ") and row["metric"] == "columns"
]


@pytest.mark.parametrize(("tau", "codec", "measured"), CASKS)
def test_bytes_of_measured_casks(tau: str, codec: str, measured: float) -> None:
    """The entropy is that of other text of the same kind, so this is as good as a plan gets."""
    inverse = int(tau.removeprefix("1/"))
    spec = CaptureSpec(tau=1 / inverse, logprob_codec=codec)
    entries = expected_entries(1 / inverse, MEASURED_ENTROPY)
    assert bytes_per_token(spec, 49_152, entries, 512, packed=False) == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(("tau", "codec", "measured"), CASKS[:1])
def test_another_entropy_would_be_noticed(tau: str, codec: str, measured: float) -> None:
    """The negative control."""
    entries = expected_entries(1 / 20, MEASURED_ENTROPY * 1.3)
    spec = CaptureSpec(tau=1 / 20, logprob_codec=codec)
    assert bytes_per_token(spec, 49_152, entries, 512, packed=False) != pytest.approx(measured, rel=0.1)


def test_the_layout_is_exact() -> None:
    """With the entries that were counted, bytes are those of the cask."""
    figures = {(row["variant"], row["metric"]): float(row["p50"]) for row in rows("cask_bytes")}
    counted = ExpectedEntries(
        head=figures["record 1/50 f16", "head entries/position"],
        draws=figures["record 1/50 f16", "tail draws/position"],
        tail_mass=0.2,
    )
    spec = CaptureSpec(tau=1 / 50)
    expected = figures["record 1/50 f16", "columns"]
    assert bytes_per_token(spec, 49_152, counted, 512, packed=False) == pytest.approx(expected, rel=2e-3)


def test_entries_by_measured_entropy() -> None:
    """Three texts with three entropies; the files' expected figures are the program's."""
    entropies = {row["text"]: float(row["p50"]) for row in rows("record_entries") if row["metric"] == "entropy"}
    figures = {
        (row["text"], row["inverse_tau"], row["metric"]): float(row["p50"])
        for row in rows("record_entries")
        if row["inverse_tau"]
    }
    assert len(entropies) == 3
    for text, inverse in {(text, inverse) for text, inverse, _ in figures}:
        expected = expected_entries(1 / int(inverse), entropies[text])
        head, draws = figures[text, inverse, "head entries"], figures[text, inverse, "tail draws"]
        assert expected.head == pytest.approx(head, rel=0.12)
        assert expected.draws == pytest.approx(draws, rel=0.07)
        assert 8 + 4 * expected.head + 2 * expected.draws == pytest.approx(8 + 4 * head + 2 * draws, rel=0.05)
        assert expected.head == pytest.approx(figures[text, inverse, "head entries, expected"], rel=1e-3)
