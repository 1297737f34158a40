"""Writers, merges, repairs, exports, splits and readers at once, killed at random: nothing lost, doubled or misread.

`LOGITCASK_CHAOS_SECONDS` makes the runs longer, with a kill per second; `LOGITCASK_CHAOS_SEED` makes others.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("LOGITCASK_CHAOS_SECONDS", "1.5"))
SEED = int(os.environ.get("LOGITCASK_CHAOS_SEED", "1"))
STAGE = "tests.support.schemas.cask_chaos"


@pytest.mark.timeout(SECONDS * 10 + 240)
@pytest.mark.parametrize("damage", ["none", "damage"], ids=["sound files", "files damaged meanwhile"])
def test_everything_at_once(tmp_path: Path, damage: str) -> None:
    """Without damage no actor may meet any error, and every reader must find all that was acknowledged.

    With damage only errors of ours may stop somebody; what is gone in the end is on the lists of a repair.
    """
    kills = max(3, int(SECONDS))
    run = subprocess.run(
        [sys.executable, "-m", STAGE, str(tmp_path), str(SEED), str(SECONDS), str(kills), damage],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    print(counts)
    assert counts["kills"] == kills
    assert counts["stored"] >= counts["acknowledged"] > 0
    assert counts["opened"] > 0
    if damage == "none":
        assert counts["read"] > 0
    else:  # after the last repair all that a slow reader still meets may be damaged
        assert counts.get("read", 0) + counts.get("refused", 0) > 0
