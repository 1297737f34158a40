"""An engine's processes end with the service, also when it is killed.

vLLM runs its engine core in a process of its own, which waits for requests for ever when the service is gone: SIGKILL
leaves no time to tell it. It would keep the memory of the accelerator, and the restarted service could not load. So
each process that vLLM starts watches the pipe that only its parent's life keeps open, and ends when that closes.

Registered under the entry point group `vllm.general_plugins`, whose plugins vLLM loads in every process it starts.
"""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

EXIT_ORPHANED = 1
_NAME = "logitcask-lifeline"


def register() -> None:
    """Watch this process's parent, where `multiprocessing` started the process; once, however often it is called."""
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _NAME for thread in threading.enumerate()):
        return
    threading.Thread(target=_end_with, args=(parent,), name=_NAME, daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    # At once, without cleaning up: whatever this process could hand over has nobody left to take it.
    os._exit(EXIT_ORPHANED)
