"""Comparison: the tables of the literature, over techniques, for one model and one data set.

`compare` is the entry point. `plan` reads the file, `stages` says what a row may do, `rows` makes
rows, `workers` has that done in confined processes, `results` and `rendering` hold and show them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompress.comparison.options import CompareOptions
from edgecompress.comparison.plan import Plan, read_plan, wanted
from edgecompress.comparison.results import ComparisonResult, Made, Subject
from edgecompress.comparison.rows import Rows, Sources
from edgecompress.comparison.workers import Alone, Flight, RowWorker, make_all
from edgecompress.core.errors import ArgumentError, ProcessError
from edgecompress.core.files import write_atomic
from edgecompress.core.options import whole
from edgecompress.core.record import sidecar_path
from edgecompress.core.results import tool_version
from edgecompress.core.user_functions import is_function
from edgecompress.core.workers import threads_each
from edgecompress.engines.run import session
from edgecompress.pipeline.request import load_profiles, usable_folder
from edgecompress.targets.family import family_of

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
    output: Path | str = CompareOptions.output,
    jobs: int = CompareOptions.jobs,
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
        jobs: Rows made at a time, each in a process of its own; 1 for a model in memory.
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
    whole(1).parse(jobs, "jobs")
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
        _apart(
            asked, sources, folder, fresh, jobs, table, progress, verbose, data_files,
            import_modules,
        )  # fmt: skip
    elif jobs > 1:
        raise ArgumentError("jobs", "be 1 for a model in memory", jobs, "Save it to a file.")
    else:
        with session():
            rows = Rows(asked, sources, folder, fresh, progress, verbose)
            table.begin(rows.subject)
            for row, seed in wanted(asked):
                table.add((row, seed), rows.make(row, seed))
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

    def add(self, item: tuple[int, int], made: Made | str) -> None:
        """Takes a row, or why there is none; it may be from a process that read a hostile file."""
        row, seed = item
        if isinstance(made, str):
            made = Made(row, "", seed, "", reason=made)
        if (made.row, made.seed) != item or item not in set(wanted(self._plan)):
            raise ProcessError("The process that reads the model returned a row of no plan.")
        made = dataclasses.replace(made, label=self._plan.rows[row].label)
        self._made[item] = made
        self.write()
        self._on_row(made, self.result())

    @property
    def open(self) -> list[tuple[int, int]]:
        """What is still to be made."""
        return [item for item in wanted(self._plan) if item not in self._made]

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
    jobs: int,
    table: _Table,
    progress: Callable[[str], None],
    verbose: bool,
    data_files: Sequence[Path | str],
    import_modules: Sequence[str],
) -> None:
    """Makes the rows in confined processes."""
    given = {"--data": sources.data, "--validation": sources.validation}
    measured = any(family_of(p).measured == "measured_host" for p in sources.profiles)
    alone, flight = Alone(jobs > 1 and measured), Flight(progress)
    told: dict[RowWorker, object] = {}

    def another() -> RowWorker:
        owner = object()
        made = RowWorker(
            {"plan": plan, "sources": sources, "output": folder, "fresh": fresh,
             "verbose": verbose},
            alone,
            flight.of(owner),
            readable=[
                sources.model,
                sidecar_path(Path(sources.model)),
                *data_files,
                *(x for x in given.values() if isinstance(x, (str, Path))),
            ],
            writable=[folder],
            modules=import_modules,
            functions={name: x for name, x in given.items() if is_function(x)},
            threads=threads_each(jobs),
            verbose=verbose,
        )  # fmt: skip
        told[made] = owner
        workers.callback(made.close)
        return made

    with contextlib.ExitStack() as workers:
        first = another()
        beginning = first.begin()
        keys = {(row, seed): key for row, seed, key in beginning.keys}
        if set(keys) != set(wanted(plan)):
            raise ProcessError("The process that reads the model returned other rows than asked.")
        table.begin(beginning.subject)
        for made in beginning.stored:
            table.add((made.row, made.seed), made)
        make_all(
            table.open, keys, first, another, jobs, table.add,
            lambda worker: flight.ended(told[worker]),
        )  # fmt: skip
