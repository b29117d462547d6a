"""The command's exit codes; 0 means that all items are ok."""

from __future__ import annotations

from typing import Final

__all__ = ["FAILED", "STOPPED", "USAGE"]

FAILED: Final = 1
"""Some items failed, or a check found something."""
USAGE: Final = 2
"""Wrong usage or configuration."""
STOPPED: Final = 3
"""Stopped before the end."""
