"""The code in the documentation of finalize and group lasso runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", ["finalize.md", "group_lasso.md"])
def test_code_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)  # The blocks of a page continue one another.
    small, model = names["small"], names["model"]
    assert small.count_params() < model.count_params()
