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


_CYCLES = """
import gc, weakref
from edgecompress.core.freed_memory import give_back, keep_imported

class Node:
    def __init__(self):
        self.me = self

gc.disable()
early = weakref.ref(Node())
keep_imported()
late = weakref.ref(Node())
give_back()
print(int(early() is not None), int(late() is not None), int(gc.get_freeze_count() > 0))
"""


def _printed(program: str = _PROGRAM, **setting: str) -> list[int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(
        command, env=environment | setting, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="no such settings")
def test_blocks_are_reused_inside_only() -> None:
    # 20 blocks of 8 MiB are 40,960 pages, or 80 huge ones.
    size = str(4 << 20)
    before, inside, after = _printed(MALLOC_MMAP_THRESHOLD_=size, MALLOC_TRIM_THRESHOLD_=size)
    assert inside < min(before, after) / 10


@pytest.mark.skipif(sys.platform != "linux", reason="no such settings")
def test_the_settings_of_the_user_stay() -> None:
    size = str(64 << 20)
    before, inside, after = _printed(MALLOC_MMAP_THRESHOLD_=size, MALLOC_TRIM_THRESHOLD_=size)
    # Had the block changed them, blocks would come from the system afterwards.
    assert after <= max(before, inside)


def test_cycles_are_freed_in_a_process_that_keeps_less_except_what_was_imported() -> None:
    # What was there when imports ended, what came later, and whether anything is exempt.
    assert _printed(_CYCLES, MALLOC_MMAP_THRESHOLD_=str(4 << 20)) == [1, 0, 1]
    assert _printed(_CYCLES) == [1, 1, 0]
