"""Forks the processes of a distributed run, for calls that come as lines of JSON; says how they ended.

This process computes nothing: one that had, with its threads, could not be forked safely.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

IMPORTED_BEFORE = (
    "logitcask_consumer.training.run",
    "logitcask_consumer.training.trainer",
    "logitcask_consumer.cross_tokenizer.method",
    "tests.support.consumer.cask_builder",
)
SECONDS, SECONDS_AFTER_A_FAILURE = 300.0, 5.0


def main() -> None:
    """Serve calls until standard input ends."""
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    for line in sys.stdin:
        call = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder) / str(rank) for rank in range(call["processes"])]
            port = _free_port()
            codes = _ends([_forked(call, rank, port, path) for rank, path in enumerate(said)])
            text = "\n".join(path.read_text(errors="replace") for path in said)
        print(json.dumps({"codes": codes, "said": text}), flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _forked(call: dict[str, Any], rank: int, port: int, said: Path) -> int:
    """The process id of one of them."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        with said.open("wb") as file, Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.clear()
        os.environ.update(call["environment"])
        count = call["processes"]
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
        os.chdir(call["folder"])
        sys.argv[1:] = call["arguments"]
        runpy.run_module(call["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the test shows it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ends(pids: list[int]) -> list[int]:
    """Exit codes; where one process fails, or time is up, the others wait for it and are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
                if codes[pid]:
                    deadline = min(deadline, time.monotonic() + SECONDS_AFTER_A_FAILURE)
        if time.monotonic() > deadline:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
            deadline += SECONDS
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    main()
