"""Search: the best file that fits a device, over everything that this package can do to a model.

`search` is the entry point, `TECHNIQUES` (in `search.techniques`) what it may do. Maths and
decisions are apart from the framework and from Optuna:

    knobs        what can be chosen
    file_model   a file at other widths, without converting it
    screening    what candidates cost, before any training
    descent      which widths to keep under the limits
    schedule     which training is due
    evaluator    a candidate in, its file and its costs out
    measured     what came of a candidate
    choosing     which candidates samples cannot tell apart
    choice       which of them is taken, and why
    study        candidates as trials of Optuna
    runner       the loop
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.searching.runner import Progress as Progress
    from edgecompress.searching.runner import search as search


def __getattr__(name: str) -> Any:
    """Imports the runner, and Keras with it, when it is first needed."""
    if name not in ("Progress", "search"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgecompress.searching import runner

    return getattr(runner, name)
