"""A forked program is what a started one would be: `programs.py`, on which other tests rely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
]

Run = Callable[..., subprocess.CompletedProcess[str]]

_SHOWN = """
import json, os, sys
print(json.dumps([sys.argv, sys.path, os.getcwd(), dict(os.environ), __name__, sys.stdin.read(),
                  len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1,
                  [name for name in sys.modules if name.startswith("edgecompress")]]))
print("to standard error", file=sys.stderr)
"""


def started(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"),
    [("-c", []), ("-c", ["-P"]), ("-c", ["-I"]), ("-m", []), ("-m", ["-P"]), ("script", []),
     ("script", ["-P"]), ("script", ["-I"])],
)  # fmt: skip
def test_it_sees_what_a_started_program_sees(
    run_python: Run, tmp_path: Path, kind: str, options: list[str]
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "shown.py").write_text(_SHOWN)
    program = {"-c": ["-c", _SHOWN], "-m": ["-m", "shown"], "script": ["packages/shown.py"]}[kind]
    # Python itself sets LC_CTYPE in some environments.
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path / "packages"),
        "LC_CTYPE": "C.UTF-8",
    }
    command = [*options, *program, "one", "--two"]
    found, want = (run(command, cwd=tmp_path, env=env) for run in (run_python, started))
    assert (found.returncode, found.stderr) == (0, "to standard error\n")
    seen, wanted = json.loads(found.stdout), json.loads(want.stdout)
    if kind == "-m":
        # runpy gives the file's absolute path; Python does, too.
        assert os.path.samefile(seen[0].pop(0), wanted[0].pop(0))
    assert seen == wanted
    assert seen[-2:] == [1, []]


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(7)",
        "raise SystemExit",
        "raise SystemExit('said last')",
        "import atexit; atexit.register(print, 'at exit'); print('before')",
        "import os; os._exit(9)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()",
        "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'print(1)'],"
        " capture_output=True, text=True).stdout)",
    ],
)  # fmt: skip
def test_it_ends_as_a_started_program_does(run_python: Run, program: str) -> None:
    found, want = run_python(["-c", program]), started(["-c", program])
    assert (found.returncode, found.stdout, found.stderr) == (
        want.returncode, want.stdout, want.stderr,
    )  # fmt: skip


def test_an_exception_ends_it_with_1_and_a_traceback(run_python: Run) -> None:
    done = run_python(["-c", "print('so far')\nraise ValueError('no')"])
    assert (done.returncode, done.stdout) == (1, "so far\n")
    assert done.stderr.splitlines()[-1] == "ValueError: no"


def test_nothing_is_left_for_the_next_one(run_python: Run) -> None:
    run_python(
        ["-c", "import builtins, os, edgecompress.cli; builtins.left = os.environ['L'] = '1'"]
    )
    done = run_python(["-c", "import builtins, os, sys; print(hasattr(builtins, 'left'),"
                             " 'L' in os.environ, 'edgecompress' in sys.modules)"])  # fmt: skip
    assert done.stdout == "False False False\n"


def test_one_that_takes_too_long_is_killed(run_python: Run, tmp_path: Path) -> None:
    program = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        run_python(["-c", program], cwd=tmp_path, timeout=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert run_python(["-c", "print('next')"]).stdout == "next\n"


_CONFINED = """
import os, sys

def look(tell, gaps):
    refused = []
    for name, attempt in (("read", lambda: open("/etc/shadow")),
                          ("write", lambda: open("here", "w")),
                          ("network", lambda: __import__("socket").socket())):
        try:
            attempt()
        except OSError:
            refused.append(name)
    loaded = [f"edgecompress.{name}" in sys.modules for name in ("cli", "pipeline")]
    return [list(gaps), refused, loaded, os.getppid(), os.getsid(0) == os.getpid()], {}
"""


def test_the_confined_process_of_a_program_is_a_real_one(run_python: Run, tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(_CONFINED)
    program = (
        "import json, os, edgecompress.cli, edgecompress.pipeline\n"
        "from edgecompress.core import isolation\n"
        "value = isolation.call('looks:look', {}, modules=['looks']).value\n"
        "print(json.dumps([*value[:3], value[3] == os.getpid(), *value[4:]]))"
    )
    seen, wanted = (
        json.loads(run(["-P", "-c", program], cwd=tmp_path).stdout) for run in (run_python, started)
    )
    assert seen == wanted
    # Its own program's child, in a session of its own, without what that one has imported.
    assert seen[2:] == [[False, False], True, True]
