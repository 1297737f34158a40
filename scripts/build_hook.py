"""Hatchling's hook: a wheel holds the page's JavaScript and CSS, which are not committed; see `fetch_assets`.

Editable installs are left to scripts/install.py, which goes on without a registry. A wheel that would lack them is not
built, unless LOGITCASK_WITHOUT_ASSETS=1 says that it may: its page then shows numbers without plots, and says so.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AssetsHook(BuildHookInterface[Any]):  # type: ignore[misc]  # hatchling is only there while a wheel is built
    """Fetches what is missing before the wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises AssetError where something cannot be fetched."""
        if version == "editable" or os.environ.get("LOGITCASK_WITHOUT_ASSETS") == "1":
            return
        assets = runpy.run_path(str(Path(self.root) / "scripts" / "fetch_assets.py"))
        if not assets["is_there"]():
            try:
                assets["fetch"]()
            except assets["AssetError"] as error:
                raise assets["AssetError"](f"{error}; or build without plots: LOGITCASK_WITHOUT_ASSETS=1") from error
