"""The first part of a confined job in a process that ends with it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core import handover, isolation
from edgecompress.core.errors import ArgumentError, ProcessError

_PARTS = """
import os, signal, sys
import numpy as np
from edgecompress.core import handover
from edgecompress.core.errors import ArgumentError

SAMPLES = np.arange(1 << 19, dtype=np.float32)

def resident():
    # KiB of files in memory.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

def first():
    import colorsys
    samples = handover.spilled(SAMPLES.reshape(2, -1))
    samples.sum()
    before = resident()
    handover.leave_unread()
    assert resident() < before - 1000, (before, resident())
    # Nested, so not run apart: there is no third process.
    assert handover.apart(lambda: 1) is None
    return {"pid": os.getpid(), "samples": samples, "same": samples, "small": np.arange(3),
            "double": np.asfortranarray(SAMPLES.reshape(2, -1) * 2)}

def both(tell, gaps):
    tell("progress", "begins")
    found = handover.apart(first)
    return {
        "apart": found["pid"] != os.getpid(),
        "clean": "colorsys" not in sys.modules,
        "equal": bool(np.array_equal(found["samples"].ravel(), SAMPLES)),
        "once": found["same"] is found["samples"],
        "small": found["small"],
        "double": bool(np.array_equal(found["double"].ravel(), 2 * SAMPLES)),
        "order": found["double"].flags.f_contiguous,
        "maps": [not found[n].flags.owndata for n in ("samples", "double")],
        "files": sorted(os.listdir(os.environ["TMPDIR"])),
        "again": handover.apart(first),
    }, {}

def alone(how, tell, gaps):
    main, seen = os.getpid(), []
    def work():
        seen.append(os.getpid())
        if how == "full disk":
            def refuse(*paths):
                raise OSError(28, "No space left on device")
            os.replace = refuse
            return 1
        if how == "raises":
            raise ArgumentError("--calibration", "be finite", "nan")
        if how == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "leaves":
            os._exit(3)
        return None
    found = handover.apart(work)
    tell("progress", "goes on")
    return [found, seen == [os.getpid()], os.getpid() != main], {"a": b"bytes"}

def stored(tell, gaps):
    data = bytes(SAMPLES)
    found = handover.apart(lambda: [handover.Handed(data), handover.Handed(data[:10])])
    place = handover.stored(found[0])
    was = place.name
    place.chmod(0o444)
    other = handover.stored(bytearray(data))
    return {
        "equal": [found[0] == data == place.read_bytes(), found[1] == data[:10]],
        "once": [was, handover.stored(found[0]) == place, other.name != was],
        "small": handover.stored(found[1]),
    }, {"large": found[0], "small": found[1]}

def loaded(name, tell, gaps):
    if name == "threads":
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    else:
        sys.modules[name] = None
    return handover.apart(lambda: 1), {}
"""


@pytest.fixture(autouse=True)
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts.py").write_text(_PARTS)
    monkeypatch.chdir(tmp_path)


def _call(function: str, told: list[str] | None = None, **arguments: Any) -> isolation.Answer:
    listener = None if told is None else told.append
    return isolation.call(f"parts:{function}", arguments, modules=["parts"], progress=listener)


def test_the_first_part_leaves_its_result_and_nothing_else() -> None:
    told: list[str] = []
    assert _call("both", told).value == {
        "apart": True,
        "clean": True,
        "equal": True,
        "once": True,
        "small": [0, 1, 2],
        "double": True,
        "order": True,
        "maps": [True, True],
        "files": ["arguments.pickle", "handover_done", "job.json", "log.txt"],
        "again": None,
    }
    assert told == ["begins"]


@pytest.mark.parametrize("how", ["no result", "full disk"])
def test_without_a_result_the_rest_goes_on_in_the_first_process(how: str) -> None:
    told: list[str] = []
    answer = _call("alone", told, how=how)
    assert (answer.value, answer.files, told) == ([None, True, True], {"a": b"bytes"}, ["goes on"])


def test_both_end_as_the_first_part_ends() -> None:
    with pytest.raises(ArgumentError, match="`--calibration` must be finite"):
        _call("alone", how="raises")
    with pytest.raises(ProcessError, match=r"crashed \(SIGSEGV\)"):
        _call("alone", how="crashes")
    with pytest.raises(ProcessError, match="ended with 3"):
        _call("alone", how="leaves")


def test_bytes_that_were_handed_over_are_in_a_file_already() -> None:
    answer = _call("stored")
    assert answer.value == {
        "equal": [True, True],
        "once": ["handover_array_0", True, True],
        "small": None,
    }
    assert answer.files["large"] == np.arange(1 << 19, dtype=np.float32).tobytes()
    assert answer.files["small"] == answer.files["large"][:10]


@pytest.mark.parametrize("name", ["tensorflow", "threads"])
def test_a_process_with_tensorflow_or_threads_is_not_forked(name: str) -> None:
    assert _call("loaded", name=name).value is None


def test_other_processes_do_it_all_themselves() -> None:
    array = np.zeros(1 << 20)
    assert handover.apart(lambda: 1) is None
    assert handover.spilled(array) is array
    assert handover.stored(array.tobytes()) is None


def test_without_a_second_process_bytes_are_pickled_as_bytes() -> None:
    found = pickle.loads(pickle.dumps(handover.Handed(b"abc"), 5))
    assert found == b"abc" and type(found) is bytes
