"""Giving freed memory back, and keeping it for a while, seen by the page faults of a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import numpy as np
from edgecompress.core.freed_memory import kept_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.full(2 << 20, 1.0, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
with kept_freed():
    faults()
    inside = faults()
print(before, inside, faults())
"""


def _faults(**setting: str) -> list[int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-P", "-c", _PROGRAM]
    done = subprocess.run(
        command, env=environment | setting, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="no such settings")
def test_blocks_are_reused_inside_only() -> None:
    # 20 blocks of 8 MiB are 40,960 pages, or 80 huge ones.
    size = str(4 << 20)
    before, inside, after = _faults(MALLOC_MMAP_THRESHOLD_=size, MALLOC_TRIM_THRESHOLD_=size)
    assert inside < min(before, after) / 10


@pytest.mark.skipif(sys.platform != "linux", reason="no such settings")
def test_the_settings_of_the_user_stay() -> None:
    size = str(64 << 20)
    before, inside, after = _faults(MALLOC_MMAP_THRESHOLD_=size, MALLOC_TRIM_THRESHOLD_=size)
    # Had the block changed them, blocks would come from the system afterwards.
    assert after <= max(before, inside)
