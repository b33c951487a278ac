"""Runs the command line as `python -m edgecompress`."""

from __future__ import annotations

import sys

from edgecompress.cli import main

sys.exit(main())
