"""What `logitcask` offers: the names are pinned, load lazily, and say which extra they need."""

import importlib.metadata
import subprocess
import sys

import pytest

import logitcask

NAMES = set(
    """
    AsyncServiceClient
    LOSSES CaptureSpec Cask CaskDataset CaskWriter Collator Context DistillConfig DistillTrainer DocumentRecords
    Extent ExtractionRequest HintRows HintSpec LogitcaskError Records ReportConfig RoundsConfig RoundsResult
    ServiceClient SparseTargetLoss TeacherIdentity TrainConfig TrainResult Weights attach capture_spec get_loss
    hidden_states make_report open_casks run_rounds train
    """.split()  # noqa: SIM905 - shorter than the list
)


def test_public_names_are_pinned():
    """A name that is taken away or renamed breaks users' code: it needs a major version."""
    assert set(logitcask.__all__) == NAMES
    assert set(dir(logitcask)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES - {"AsyncServiceClient", "ServiceClient"}))
def test_every_name_loads(name):
    value = getattr(logitcask, name)
    assert name == "LOSSES" or value.__name__ == name


def test_the_version_is_that_of_the_distribution():
    assert logitcask.__version__ == importlib.metadata.version("logitcask")


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'Student'"):
        logitcask.Student  # noqa: B018
    with pytest.raises(ImportError):
        from logitcask import Student  # noqa: F401


def test_importing_loads_neither_side():
    code = "import sys, logitcask; logitcask.Cask; print('torch' in sys.modules, 'logitcask_consumer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("DistillTrainer", "transformers", "trainer"),
        ("ServiceClient", "httpx2", "service"),
        ("AsyncServiceClient", "httpx2", "service"),
    ],
)
def test_a_missing_side_names_the_extra(name, module, extra):
    code = f"import sys; sys.modules[{module!r}] = None; import logitcask; logitcask.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"MissingExtraError: `logitcask.{name}` needs the module '{module}" in last
    assert f'pip install ".[{extra}]"' in last
