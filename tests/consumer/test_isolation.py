"""The training side stands alone: no vLLM, no service, and commands that are light to import."""

import importlib.util
import pkgutil
import subprocess
import sys

import logitcask_consumer

FORBIDDEN = ("vllm", "logitcask_services", "fastapi", "sqlalchemy")
HAS_TRITON = importlib.util.find_spec("triton") is not None
MODULES = [
    module_info.name
    for module_info in pkgutil.walk_packages(logitcask_consumer.__path__, "logitcask_consumer.")
    if HAS_TRITON or not module_info.name.rpartition(".")[2].startswith("triton_")
]


def loaded_after(statements):
    """Names of modules that a fresh interpreter holds after the statements."""
    code = f"import sys\n{statements}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_no_module_of_the_consumer_imports_the_teachers_side():
    assert len(MODULES) > 25
    loaded = loaded_after("\n".join(f"import {name}" for name in MODULES))
    assert {"torch", "transformers"} <= loaded
    assert not [name for name in loaded if name.split(".")[0] in FORBIDDEN]


def test_commands_import_neither_torch_nor_transformers():
    loaded = loaded_after(
        "import logitcask_consumer.cli.train, logitcask_consumer.cli.report, logitcask_consumer.cli.rounds, "
        "logitcask_consumer.cli.tasks"
    )
    assert not {"torch", "transformers", "numpy", "matplotlib"} & loaded
