"""Runs the demonstration: `python -m edgecompress.demo --output build/demo`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path


def main() -> int:
    """Runs the demonstration; returns the report's exit code, undecided limits accepted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(prog="edgecompress.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="folder of results")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each training phase")
    options = parser.parse_args()

    from edgecompress.core.errors import EdgeCompressError
    from edgecompress.core.terminal import SafeConsole, shown
    from edgecompress.demo import print_result, run

    start = time.monotonic()
    try:
        result = run(options.output, options.epochs, lambda text: print(shown(text), flush=True))
    except EdgeCompressError as error:
        print(shown(f"edgecompress.demo: {error}"), file=sys.stderr)
        return error.exit_code
    print_result(result, SafeConsole())
    print(f"\nOpen {options.output}/report.html. {time.monotonic() - start:.0f} s in all.")
    # Nothing was measured on a phone; what failed still decides.
    if result.report.undecided:
        print(f"Accepted though undecided: {'; '.join(result.report.undecided_limits)}.")
    return result.report.exit_code_for(allow_undecided=True)


sys.exit(main())
