"""Every public name is documented: a first line, and an example."""

from __future__ import annotations

import inspect

import pytest

import edgecompress as ec

NAMES = [name for name in ec.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_documented(name: str) -> None:
    public = getattr(ec, name)
    text = inspect.getdoc(public) or ""
    assert text.splitlines()[0].endswith("."), f"{name}: the first line is not a sentence"
    if not (inspect.isclass(public) and issubclass(public, Exception)):
        assert "Example" in text, f"{name}: no example"


def test_functions_stay_functions_after_their_modules_were_imported() -> None:
    import edgecompress.pipeline

    assert callable(ec.export)
    assert callable(ec.check)
    assert edgecompress.pipeline.export is ec.export
