"""The time of day in files that programs write."""

from __future__ import annotations

import time


def utc_now() -> str:
    """Returns the time in UTC as ISO 8601 to the second, `2026-01-02T03:04:05Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
