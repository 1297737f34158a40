"""Whether a Ray cluster is where it was said to be, and lets us in: known in seconds, and said in a sentence.

Ray itself tries for minutes, and prints each trial.
"""

import os
import socket
import subprocess
import sys
from typing import Final

from logitcask_services.jobs.executors.corpus_capture import CaptureStoppedError

LISTENER_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 120.0
"""For a head to answer a process that has to be started for the question, on a busy machine."""


def named_address(address: str | None) -> str | None:
    """The address that was given, or that of the environment; None where neither is."""
    return address or os.environ.get("RAY_ADDRESS") or None


def require_listener(address: str | None) -> bool:
    """Raise CaptureStoppedError where nobody listens at `host:port`.

    Args:
        address: See `RayOptions`.

    Returns:
        Whether somebody listens there; False where no such address was named.
    """
    named = named_address(address)
    host, _, port = (named or "").rpartition(":")
    if not (host and port.isdecimal()):
        return False
    is_bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and "/" not in host and not is_bracketed:
        raise no_cluster(named, "an IPv6 address stands in brackets, such as [::1]:6379")
    try:
        place = (host[1:-1] if is_bracketed else host, int(port))
        socket.create_connection(place, timeout=LISTENER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:  # the latter of what is no host, or no port
        raise no_cluster(named, error) from error
    return True


def require_answer(address: str | None) -> None:
    """Raise CaptureStoppedError where a named `host:port` is that of no cluster, or of one that does not let us in.

    `ray status` asks, in a process that can be ended. Of a cluster that Ray finds by itself nothing is asked.

    Args:
        address: See `RayOptions`.
    """
    if not require_listener(address):
        return
    named = str(named_address(address))
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", named]
    try:
        asked = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise unusable_cluster(named, f"nothing that Ray understands has come in {ANSWER_SECONDS:g} s") from error
    if asked.returncode:
        raise unusable_cluster(named, _reason(asked.stderr))


def _reason(said: str) -> str:
    """The first sentence of an error, which ends what a command has printed."""
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "`ray status` fails")
    kind, colon, sentence = last.partition(": ")
    is_kind = colon and kind.replace(".", "").isidentifier()
    return (sentence if is_kind else last).partition(". ")[0]


def no_cluster(address: str | None, reason: Exception | str) -> CaptureStoppedError:
    """Nobody listens there."""
    return CaptureStoppedError(
        f"there is no Ray cluster at {address or 'this machine'}: {str(reason).rstrip('.')}. Start one with `ray start "
        "--head`, and name it as HOST:PORT; or leave --ray-address (and RAY_ADDRESS) out"
    )


def unusable_cluster(address: str | None, reason: Exception | str) -> CaptureStoppedError:
    """Somebody listens there. Ray tells a token that is missing from a dead head in some of its messages only."""
    return CaptureStoppedError(
        f"the Ray cluster at {address or 'this machine'} cannot be used: {str(reason).rstrip('.')}. Look whether it is "
        "alive (`ray status`), and whether that is its head's port, 6379 as a rule. Where it asks for a token, as one "
        "does whose head has a ~/.ray/auth_token, set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN or in that "
        "file here, too"
    )
