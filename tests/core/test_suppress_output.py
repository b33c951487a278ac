"""What libraries print is kept away, and nothing of that outlives the block."""

from __future__ import annotations

import logging
import os
import sys

import pytest

from edgecompress.core.suppress_output import suppress_output


def test_everything_printed_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with suppress_output() as captured:
        print("from Python")
        os.write(2, b"from C++")
    assert "from Python" in captured.text and "from C++" in captured.text
    assert capfd.readouterr() == ("", "")


def test_handlers_made_inside_log_outside_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("edgecompress.tests.made_inside")
    with pytest.raises(ZeroDivisionError), suppress_output():
        logger.addHandler(logging.StreamHandler(sys.stderr))
        _ = 1 / 0
    logger.warning("later")
    assert capfd.readouterr().err == "later\n"
