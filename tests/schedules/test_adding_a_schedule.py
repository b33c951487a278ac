"""The example of docs/adding_a_schedule.md runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_schedule.md"


def test_example_of_the_page() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code += "from edgecompress.schedules import deserialize, serialize\n"
    code += "print(deserialize(serialize(schedule)) == schedule)\n"
    # In a process of its own: it registers a schedule.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.4 False\nTrue\n"
