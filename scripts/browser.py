"""Chromium for the page's tests, from the system's packages, where it is not there and this user may install it.

`make test` runs this. Without a browser these tests are skipped, and say so.
"""

import os
import shutil
import subprocess


def main() -> None:
    """Install it, or say what is missing."""
    apt = shutil.which("apt-get")
    if shutil.which("chromium") is not None:
        return
    if apt is None or os.geteuid() != 0:
        print("no Chromium here: the page's tests in a browser will be skipped")
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        print("apt-get", *arguments, flush=True)
        done = subprocess.run([apt, *arguments], check=False, capture_output=True, env=environment)
        if done.returncode != 0:
            print("no Chromium could be installed: the page's tests in a browser will be skipped")
            return


if __name__ == "__main__":
    main()
