"""The GPU kit on a CPU: every section runs, what it finds is written, and a section that fails ends no other."""

import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from gpu_kit_run import Kit, SkippedError, markdown
from report import Report

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_the_kit_runs_small_on_a_cpu(tmp_path, monkeypatch, capsys):
    command = ["gpu_kit.py", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCH / "gpu_kit.py"), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().out
    with (tmp_path / "gpu_kit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"capture equality", "capture speed", "fused losses", "student step", "transformers engine"} == {
        row["section"] for row in rows
    }
    assert all(row["device"].startswith("cpu") and float(row["p50"]) >= 0 for row in rows)
    told = (tmp_path / "gpu_kit.md").read_text(encoding="utf-8")
    assert "no figure counts" in told
    assert "| capture equality | passed |" in told
    assert "| vLLM engine | skipped: vLLM is not installed in this environment |" in told
    assert f"torch {torch.__version__}" in told


def test_a_section_that_fails_is_reported_and_the_next_one_runs(tmp_path):
    kit = Kit(device=torch.device("cpu"), quick=True, report=Report(str(tmp_path / "gpu_kit.py"), "torch"))

    def wrong(kit: Kit) -> None:
        kit.require(False, "records differ")

    def skipped(kit: Kit) -> None:
        raise SkippedError("not here")

    kit.run("first", wrong)
    kit.run("second", skipped)
    kit.run("third", lambda kit: None)
    assert kit.states == {
        "first": "FAILED: AssertionError: records differ",
        "second": "skipped: not here",
        "third": "passed",
    }
    assert kit.failed
    assert "| first | FAILED: AssertionError: records differ |" in markdown(kit)


def test_without_a_gpu_the_kit_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_kit.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        runpy.run_path(str(BENCH / "gpu_kit.py"), run_name="__main__")
