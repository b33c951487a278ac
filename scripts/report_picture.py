"""Makes docs/report.png, the picture in the README: the top of a report as a browser shows it.

    make demo
    .venv/bin/python scripts/report_picture.py build/demo/report.html

Needs Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# In CSS pixels: down to the end of the demonstration's first target.
SIZE = (960, 1052)
SCALE = 1.5
COLOURS = 64


def browser() -> str | None:
    """Returns the path of a browser that can draw a page without a screen; None for none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def draw(program: str, page: Path, picture: Path, size: tuple[int, int] = SIZE) -> None:
    """Writes the top of a page as PNG, with a palette.

    Args:
        program: The browser.
        page: An HTML file.
        picture: The file to write.
        size: Width and height in CSS pixels; the picture has `SCALE` times as many.
    """
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        width, height = size
        subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={folder}/profile",
                f"--force-device-scale-factor={SCALE}",
                f"--window-size={width},{height}",
                f"--screenshot={shot}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> int:
    """Draws the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="report.html")
    parser.add_argument("--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    program = browser()
    if program is None:
        print(f"None of {', '.join(BROWSERS)} is installed.", file=sys.stderr)
        return 1
    draw(program, options.page, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
