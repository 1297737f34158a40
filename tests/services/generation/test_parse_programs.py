"""Answers that are programs, and the sandbox that runs them."""

import re
import sys
import time
from pathlib import Path

import pytest

from logitcask_services.generation.rows import Dropped
from logitcask_services.generation.sandbox import SandboxError, run_in_sandbox
from tests.support.services.parsing import answer_of, parse


def test_programs():
    text = "Let us compute.\n```python\na = 3\nprint(a * 4)  # twelve\n```\nDone."
    result = parse(text, answer="program", rationale="why")
    assert (result.fields["answer"], result.fields["why"]) == (12, "Let us compute.")
    assert answer_of("answer = 1 / 4", answer="program") == 0.25


def test_other_programs_need_a_sandbox():
    result = parse("print(len('abc'))", answer="program")
    assert isinstance(result, Dropped)
    assert "only where the service has a sandbox command" in result.message
    python = [sys.executable, "-I", "-"]
    assert answer_of("print(len('abc'))", answer="program", sandbox=python) == 3
    assert answer_of("print('yes')", answer="program", sandbox=python) == "yes"
    for program, told in [("x = 'a'", "prints its answer"), ("raise KeyError('k')", "ended with 1: KeyError: 'k'")]:
        result = parse(program, answer="program", sandbox=python)
        assert isinstance(result, Dropped)
        assert told in result.message


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("while True: pass", "took longer than 1 s"),
        ("while True: print('x' * 1000)", "wrote more than 65536 bytes"),
        ("import os; os.close(1); os.close(2)\nwhile True: pass", "took longer"),
        ("import os; os.abort()", "ended with -6"),
    ],
)
def test_what_the_sandbox_bounds(program, told):
    with pytest.raises(SandboxError, match=re.escape(told)):
        run_in_sandbox([sys.executable, "-I", "-"], program, 1.0)


def test_the_sandbox_has_no_environment_and_an_empty_folder():
    program = "import os; print(sorted(os.environ.keys() - {'LC_CTYPE'}), os.listdir())"
    assert run_in_sandbox([sys.executable, "-I", "-"], program, 10.0) == "[] []\n"


def test_processes_left_behind_are_killed():
    # The child holds the pipes, so that only the end of its parent tells that the program is over.
    script = "import time; time.sleep(600)"
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {script!r}]).pid)"
    child = int(run_in_sandbox([sys.executable, "-I", "-"], program, 30.0))
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid):
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sandbox_commands_that_do_not_exist():
    with pytest.raises(SandboxError, match="'no-such-command' could not be started"):
        run_in_sandbox(["no-such-command"], "1", 1.0)
    with pytest.raises(SandboxError, match="is empty"):
        run_in_sandbox([], "1", 1.0)
