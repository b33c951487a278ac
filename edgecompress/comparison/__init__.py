"""Comparison: the tables of the literature, over techniques, for one model and one data set.

`compare` is the entry point. `plan` reads the file, `stages` says what a row may do, `rows` makes
the rows in a confined process, `results` and `rendering` hold and show them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompress.comparison.plan import Plan, read_plan, wanted
from edgecompress.comparison.results import ComparisonResult, Made, Subject
from edgecompress.comparison.rows import Rows, Sources
from edgecompress.core import isolation
from edgecompress.core.errors import ArgumentError, ProcessError
from edgecompress.core.files import write_atomic
from edgecompress.core.record import sidecar_path
from edgecompress.core.results import tool_version
from edgecompress.core.user_functions import is_function
from edgecompress.engines.run import session
from edgecompress.pipeline.options import CompressOptions
from edgecompress.pipeline.request import load_profiles, usable_folder

__all__ = ["ComparisonResult", "compare"]


def _silent(_: object) -> None:
    pass


def compare(
    plan: Path | str | Mapping[str, Any],
    *,
    model: Any = None,
    data: Any = None,
    validation: Any = None,
    data_files: Sequence[Path | str] = (),
    steps_per_epoch: int | None = None,
    output: Path | str = CompressOptions.output,
    fresh: bool = False,
    import_modules: Sequence[str] = (),
    progress: Callable[[str], None] = _silent,
    on_row: Callable[[Made, ComparisonResult], None] = lambda made, result: None,
    verbose: bool = False,
    argv: Sequence[str] = (),
) -> ComparisonResult:
    """Compares techniques on one model and one data set: parameters, MACs, error, bytes, latency.

    Every row of the plan trains, rewrites and exports the model in its own way; its file runs in
    the engine of the targets on all validation data. A finished row is kept in `<output>/rows`, and
    the same call makes only what is missing. A row that cannot be made is named with the reason.

    Writes `compare.md`, `compare.html` and `compare.json` into `output`, anew after every row.

    Args:
        plan: Path of a .toml file, or a mapping with the same keys; see docs/compare.md.
        model: A trained Keras model, or the path of its file. Defaults to None: the plan's.
        data: Training data as `compress` takes them. Defaults to None: the plan's.
        validation: Data that every row is measured on. Defaults to None: the plan's, or a share of
            the training data.
        data_files: Files and folders that a function reads, if the model is a file.
        steps_per_epoch: Batches of an epoch, for a dataset without an end.
        output: Folder of the files; created if it is missing.
        fresh: Make all rows anew.
        import_modules: As in `export`.
        progress: Called with a short text as each step begins.
        on_row: Called after each row with it and the table so far.
        verbose: Let libraries' logs through.
        argv: The command for the page.

    Returns:
        The rows with their numbers; `result.exit_code` is 0 if all were made.

    Raises:
        EdgeCompressError: the plan, the model or the data are wrong.

    Example:
        >>> result = ec.compare("compare.toml", output="build")  # doctest: +SKIP
        >>> result.exit_code, result.labels  # doctest: +SKIP
        (0, ('untouched', 'half of the channels'))
    """
    asked = read_plan(plan)
    sources = Sources(
        _given("model", model, asked.model),
        _given("data", data, asked.data),
        asked.validation if validation is None else validation,
        tuple(load_profiles(asked.targets)),
        steps_per_epoch,
    )
    folder = usable_folder(output)
    table = _Table(asked, sources, folder, tuple(argv) or tuple(sys.argv), on_row)
    if isinstance(sources.model, (str, Path)):
        folder.mkdir(parents=True, exist_ok=True)
        _apart(asked, sources, folder, fresh, table, progress, verbose, data_files, import_modules)
    else:
        with session():
            rows = Rows(asked, sources, folder, fresh, progress, verbose)
            table.begin(rows.subject)
            for row, seed in wanted(asked):
                table.add(rows.make(row, seed))
    return table.result()


def _given(name: str, given: Any, planned: Any) -> Any:
    found = planned if given is None else given
    if found is None:
        raise ArgumentError(name, "be given", None, f'In the file: {name} = "PATH".')
    return found


class _Table:
    """The table so far: kept, written and told after every row."""

    def __init__(
        self,
        plan: Plan,
        sources: Sources,
        folder: Path,
        argv: tuple[str, ...],
        on_row: Callable[[Made, ComparisonResult], None],
    ) -> None:
        self._plan, self._folder, self._argv, self._on_row = plan, folder, argv, on_row
        self._targets = tuple(profile.name for profile in sources.profiles)
        self._subject: Subject | None = None
        self._made: dict[tuple[int, int], Made] = {}

    def begin(self, subject: Subject) -> None:
        """Takes what the loaded model and data say."""
        self._subject = subject

    def add(self, made: Made) -> None:
        """Takes a row, which may come from a process that read a hostile file."""
        if (made.row, made.seed) not in set(wanted(self._plan)):
            raise ProcessError("The process that reads the model returned a row of no plan.")
        made = dataclasses.replace(made, label=self._plan.rows[made.row].label)
        self._made[made.row, made.seed] = made
        self.write()
        self._on_row(made, self.result())

    @property
    def open(self) -> list[tuple[int, int]]:
        """What is still to be made."""
        return [item for item in wanted(self._plan) if item not in self._made]

    def label(self, row: int) -> str:
        """Returns the name of a row."""
        return self._plan.rows[row].label

    def result(self) -> ComparisonResult:
        """Returns the table so far."""
        return ComparisonResult(
            self._subject,
            tuple(self._made[item] for item in sorted(self._made)),
            self._targets,
            len(list(wanted(self._plan))),
            tool_version(),
            self._argv,
        )

    def write(self) -> None:
        """Writes the table in all its forms."""
        from edgecompress.comparison.rendering import render_html, render_markdown

        result = self.result()
        files = {
            "compare.md": render_markdown(result),
            "compare.html": render_html(result),
            "compare.json": result.to_json(),
        }
        # One by one: a swap of the folder would take it from the process that makes the rows.
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomic(self._folder / name, text)


def _apart(
    plan: Plan,
    sources: Sources,
    folder: Path,
    fresh: bool,
    table: _Table,
    progress: Callable[[str], None],
    verbose: bool,
    data_files: Sequence[Path | str],
    import_modules: Sequence[str],
) -> None:
    """Makes the rows in a confined process; where one brings it down, the rest in another."""
    given = {"--data": sources.data, "--validation": sources.validation}
    begun: list[tuple[int, int]] = []

    def event(told: Any) -> None:
        match told:
            case {"subject": value}:
                table.begin(isolation.decode(Subject, value))
            case {"row": value}:
                begun.clear()
                table.add(isolation.decode(Made, value))
            case {"begin": [int(row), int(seed)]}:
                begun[:] = [(row, seed)]

    while table.open:
        try:
            isolation.call(
                f"{__name__}:compare_isolated",
                {"plan": plan, "sources": sources, "output": folder, "fresh": fresh,
                 "only": table.open, "verbose": verbose},
                readable=[
                    sources.model,
                    sidecar_path(Path(sources.model)),
                    *data_files,
                    *(x for x in given.values() if isinstance(x, (str, Path))),
                ],
                writable=[folder],
                modules=import_modules,
                functions={name: x for name, x in given.items() if is_function(x)},
                training=True,
                progress=progress,
                on_event=event,
                verbose=verbose,
            )  # fmt: skip
        except ProcessError as error:
            # A row that takes the process with it is a row that cannot be made.
            if not begun or begun[0] not in table.open:
                raise
            row, seed = begun.pop()
            table.add(Made(row, table.label(row), seed, "", reason=str(error)))
            continue
        if table.open:
            raise ProcessError("The process that reads the model ended before the last row.")


def compare_isolated(
    plan: Plan,
    sources: Sources,
    output: Path,
    fresh: bool,
    only: Sequence[tuple[int, int]],
    verbose: bool,
    tell: Callable[[str, Any], None],
    gaps: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Makes rows in the process that was started for it, and tells each."""
    with session() as shared:
        shared.gaps.update(dict.fromkeys(gaps))
        rows = Rows(plan, sources, output, fresh, lambda text: tell("progress", text), verbose)
        tell("event", {"subject": isolation.encode(rows.subject)})
        for row, seed in only:
            tell("event", {"begin": [row, seed]})
            tell("event", {"row": isolation.encode(rows.make(row, seed))})
    return {}, {}
