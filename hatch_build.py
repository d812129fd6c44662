"""Build hook of hatchling: compile the page in web/ into src/hooke/web/static before the wheel is packed.

With HOOKE_SKIP_PAGE=1 in the environment the page is not built: the Python side alone is installed (used by developers who do
not touch the page). This is the frame; the page's own build step goes into `initialize`.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageBuild(BuildHookInterface):
    """Runs once for every wheel, editable ones included."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page unless HOOKE_SKIP_PAGE is set."""
        if os.environ.get("HOOKE_SKIP_PAGE") == "1":
            return
