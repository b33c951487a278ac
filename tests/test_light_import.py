"""Importing the package, and asking the command for help, costs no TensorFlow and no Keras."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAVY = ("tensorflow", "keras", "tf_keras", "ai_edge_litert", "litert_quantizer", "matplotlib",
          "tflite_micro", "tflite_runtime", "h5py")  # fmt: skip


def _loaded_by(code: str) -> list[str]:
    report = f"import sys; print([m for m in {_HEAVY!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return eval(result.stdout.strip().splitlines()[-1], {"__builtins__": {}})


def test_the_check_sees_a_heavy_import() -> None:
    assert "h5py" in _loaded_by("import h5py")


@pytest.mark.parametrize(
    "code",
    [
        "import edgecompress; edgecompress.__version__; dir(edgecompress)",
        "import edgecompress.cli",
        "import edgecompress; edgecompress.PolynomialDecay",
        "from edgecompress.cli import main\nassert main(['--help']) == 0",
        "from edgecompress.cli import main\nassert main(['export', '--help']) == 0",
        "from edgecompress.cli import main\nassert main(['targets']) == 0",
        "import edgecompress.pipeline, edgecompress.converters, edgecompress.targets",
        "import edgecompress.recipes; edgecompress.recipes.RECIPES['deep-compression'].settings()",
        "from edgecompress.cli import main\nassert main(['compress', '--help']) == 0",
        "from edgecompress.cli import main\nassert main(['search', '--help']) == 0",
    ],
)
def test_light(code: str) -> None:
    assert _loaded_by(code) == []


@pytest.mark.parametrize(
    "command", ["", "export", "check", "bench", "compress", "compare", "search"]
)
def test_help_needs_no_pydantic(command: str) -> None:
    """Files are checked by pydantic, which is imported as the first one is read."""
    code = (
        "import sys\nfrom edgecompress.cli import main\n"
        f"assert main([*{command!r}.split(), '--help']) == 0\nassert 'pydantic' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_public_name_loads() -> None:
    code = (
        "import edgecompress as ec\n"
        "missing = [n for n in ec.__all__ if not hasattr(ec, n)]\n"
        "assert not missing, missing\n"
        "try: ec.Nothing\nexcept AttributeError: pass\nelse: raise SystemExit(1)"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
