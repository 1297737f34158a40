"""The engine's processes end with a service that is killed; without the lifeline they do not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import multiprocessing, os, sys, time
sys.path[:0] = {roots!r}

def engine(connection, watched):
    if watched:
        from logitcask_services.engines.vllm.watch import register
        register()
        register()
    connection.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    ours, theirs = context.Pipe()
    process = context.Process(target=engine, args=(theirs, {watched!r}))
    process.start()
    print(ours.recv(), flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize("watched", [True, False])
def test_orphans(tmp_path, method, watched):
    script = tmp_path / "parent.py"
    roots = [str(Path(__file__).parents[3] / name) for name in ("schemas", "services")]
    script.write_text(PARENT.format(roots=roots, method=method, watched=watched))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + (30 if watched else 1)
        while alive(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        survived = alive(child)
        if survived:
            os.kill(child, signal.SIGKILL)
    assert survived is not watched
