"""docs/planning.md says what the program says: its example, every figure beside a formula, its tables."""

import csv
import math
import re
import shlex
from pathlib import Path

import pytest

from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cli.main import main
from logitcask_schemas.planning.entries import TAIL_EXPONENT, expected_entries
from logitcask_schemas.planning.plan import PREPARE_MICROSECONDS, RUN_MICROSECONDS, Request, make_plan
from logitcask_schemas.record.capture_spec import CaptureSpec

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "planning.md").read_text()
RESULTS = ROOT / "bench" / "results"


def example() -> tuple[str, str]:
    """The command of the page, and what it says that it prints."""
    found = re.search(r"```sh\n(logitcask plan .*?)\n```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def beside_formulas() -> dict[str, str]:
    """What the program says of each row of the page's tables of formulas."""
    spec = CaptureSpec(tau=1 / 35)
    request = Request(
        tokens=1e12, teacher_params=70e9, layers=80, width=8192, gpu="h100", spec=spec, gpus=1024, mtbf_hours=1e4
    )
    made = make_plan(request)
    fleet, failures, cask = made.fleet, made.failures, made.cask
    assert fleet is not None
    assert failures is not None
    attention = 2 * 80 * 8192 * 2048
    entries = expected_entries(1 / 35, 2.2)
    units = RecordLayout.for_capture(spec, 128_256).bytes_per_unit
    position = units["position"] + units["head"] * entries.head + units["tail"] * entries.draws
    return {
        "operations per token": f"{made.flops / 1e12:.4g}",
        "share of attention": f"{attention / (2 * 70e9 + attention):.1%}",
        "tokens/s per GPU": f"{made.tokens_per_gpu_second:,.0f}",
        "GPU-days": f"{made.gpu_days:,.0f}",
        "GPUs per replica": f"{made.gpus_per_replica}",
        "days": f"{fleet.days:.2f}",
        "tail mass R": f"{entries.tail_mass:.4f}",
        "tokens that reach tau, N": f"{entries.head - entries.tail_mass:.3f}",
        "head entries": f"{entries.head:.3f}",
        "draws": f"{entries.draws:.3f}",
        "bytes per position": f"{position:.2f}",
        "bytes per token": f"{cask.bytes_per_token:.2f}",
        "seconds of a chunk, w": f"{made.chunk_seconds:,.0f}",
        "slowdown": f"{failures.slowdown:.6f}",
        "work lost per failure": f"{failures.lost_gpu_seconds / made.gpus_per_replica:,.0f} s of a replica",
        "failures": f"{failures.expected:.1f}",
        "core-days": f"{made.frontend_core_days:.1f}",
        "cores busy": f"{fleet.frontend_cores:.2f}",
        "written": f"{fleet.written_bytes_per_second / 1e6:.1f} MB/s",
        "text read": f"{fleet.text_bytes_per_second / 1e6:.1f} MB/s",
    }


def checked_table() -> list[list[str]]:
    """Per text: entropy, then measured and expected bytes of a position at some thresholds."""
    figures = {(row["text"], row["inverse_tau"], row["metric"]): float(row["p50"]) for row in rows("record_entries")}
    table = []
    for text in dict.fromkeys(text for text, _, _ in figures):
        entropy = figures[text, "", "entropy"]
        line = [text, f"{entropy:.2f}"]
        for inverse in (20, 35, 50, 100, 200):
            head, draws = (figures[text, str(inverse), name] for name in ("head entries", "tail draws"))
            expected = expected_entries(1 / inverse, entropy)
            line.append(f"{6 + 4 * head + 2 * draws:.1f} / {6 + 4 * expected.head + 2 * expected.draws:.1f}")
        table.append(line)
    return table


def fleet_table() -> list[list[str]]:
    """Per fleet: failures, time over ideal, its closed form, work lost, duplicates."""
    figures = {(row["fleet"], row["metric"]): float(row["p50"]) for row in rows("fleet")}
    return [
        [
            fleet,
            f"{figures[fleet, 'failures']:,.0f}",
            f"{figures[fleet, 'time / ideal']:.3f}",
            f"{figures[fleet, 'time / ideal, closed form']:.3f}",
            f"{figures[fleet, 'work lost']:.2%}",
            f"{figures[fleet, 'duplicates']:,.0f}",
        ]
        for fleet in dict.fromkeys(fleet for fleet, _ in figures)
    ]


def test_the_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    import importlib.metadata

    point = importlib.metadata.EntryPoint("plan", "logitcask_schemas.cli.plan:app", "logitcask.commands")
    monkeypatch.setattr("logitcask_schemas.cli.main.importlib.metadata.entry_points", lambda **_: [point])
    monkeypatch.delenv("COLUMNS", raising=False)
    command, printed = example()
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command)[1:])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(("name", "value"), beside_formulas().items())
def test_figures_beside_formulas(name: str, value: str) -> None:
    found = [cells(line) for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    assert [line[2] for line in found if len(line) == 3] == [value]


def test_constants_in_sentences() -> None:
    assert f"a = {TAIL_EXPONENT} fits" in PAGE
    assert f"{PREPARE_MICROSECONDS} us of a core" in PAGE
    assert f"{RUN_MICROSECONDS} us (the same" in PAGE
    assert f"tokens · {PREPARE_MICROSECONDS + RUN_MICROSECONDS:.3f} us" in PAGE
    assert math.isclose(PREPARE_MICROSECONDS + RUN_MICROSECONDS, 2.894)


@pytest.mark.parametrize("table", [checked_table, fleet_table])
def test_tables_of_results(table) -> None:
    lines = [cells(line) for line in PAGE.splitlines() if line.startswith("| ")]
    assert [line for line in table() if line not in lines] == []
