"""Wakes a waiting service when vLLM's engine process is gone.

When the engine core dies by its own error it says so, and vLLM raises. When it is killed (the kernel's out-of-memory
killer does that) vLLM's synchronous client notices, marks the engine dead, and goes on waiting for an output that will
never come. The watch below hands that waiting call the error it should have had.
"""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess
from typing import Any

_SECONDS_BETWEEN_LOOKS = 0.5


def watch_engine_core(core: Any) -> threading.Event:
    """Watch an engine core client for the death of its process, until the returned event is set.

    Args:
        core: `LLMEngine.engine_core`. One that runs in this very process needs no watch and gets none.

    Returns:
        Event that ends the watch.
    """
    ended = threading.Event()
    resources, outputs = getattr(core, "resources", None), getattr(core, "outputs_queue", None)
    if resources is not None and outputs is not None:
        # Holds the client's parts, not the client, which must stay free to be collected.
        threading.Thread(
            target=_watch, args=(resources, outputs, ended), name="logitcask-engine-watch", daemon=True
        ).start()
    return ended


def _watch(resources: Any, outputs: Any, ended: threading.Event) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        if resources.engine_dead:
            outputs.put_nowait(EngineDeadError())
            return


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
