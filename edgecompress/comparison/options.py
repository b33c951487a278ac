"""The options of `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import Path, many, option, whole
from edgecompress.core.user_functions import PathOrFunction


@dataclass(frozen=True)
class CompareOptions:
    """What is not, or not only, in the file."""

    model: Any = option(None, "Trained model in place of the file's.", Path("MODEL"))
    data: Any = option(
        None, "Training data in place of the file's, or module:function.", PathOrFunction()
    )
    validation: Any = option(None, "The same for validation.", PathOrFunction())
    data_files: Sequence[Any] = option(
        (),
        "A file or folder that a function reads, outside its module's own folder.",
        many(Path("PATH")),
    )
    steps_per_epoch: int | None = option(
        None, "Batches of an epoch, for a dataset without an end.", whole(1)
    )
    output: str = option("build", "Output folder.", Path("DIR"), short="-o")
    jobs: int = option(1, "Rows made at a time, each in a process of its own.", whole(1))
    fresh: bool = option(False, "Make all rows anew, also those that an earlier run has finished.")
