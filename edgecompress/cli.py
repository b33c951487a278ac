"""The command line: parse, call one library function, print, return the exit code.

Results go to standard output, everything else (progress, notes, errors) to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecompress.core.errors import (
    FAILURE,
    OK,
    UNDECIDED,
    USAGE,
    ArgumentError,
    EdgeCompressError,
    UnknownNameError,
    UnreadableFileError,
)
from edgecompress.core.terminal import SafeConsole, plain, shown

# typer carries its own copy of click; its base classes are reached through the public subclass.
_UsageError = typer.BadParameter.__base__

# Exit codes of a program that a signal has ended: 128 and the signal's number, as shells have it.
_SIGNAL_BASE = 128


class _Interrupted(BaseException):
    """Ctrl-C or a request to end; no KeyboardInterrupt, which typer prints an empty line for."""


# Signals that came while a command ran. What their handler raises, native code may turn into an
# exception of its own, and code that catches everything may lose it.
_CAME: list[int] = []


class _Console(SafeConsole):
    """Standard output whose reader may leave early (`| head`) without changing the verdict."""

    def on_broken_pipe(self) -> None:
        _leave_pipe()


def _leave_pipe() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_text(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _leave_pipe()


app = typer.Typer(
    name="edgecompress",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Export Keras models to devices and fail the build when they do not fit.",
    epilog=(
        "Exit codes: 0 fits, 1 error, 2 usage, 3 a budget is exceeded, 4 accuracy below its "
        "floor, 5 an operator the target cannot run, 6 a limit that could not be decided."
    ),
)


android = typer.Typer(
    name="android",
    rich_markup_mode=None,
    help="Build the demo app for phones, and install it.",
)
app.add_typer(android)


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes the values of a TOML file the defaults of the command's options."""
    if path is None:
        return None
    from edgecompress.core.reading import read_toml

    try:
        values = read_toml(path)
    except UnreadableFileError as error:
        raise ArgumentError(
            "--config", "be a readable TOML file", str(path), f"It {error.problem}."
        ) from error
    commands = _configurable(ctx)
    # A key's meaning is that of the first command that has it; elsewhere it may be another thing.
    common: dict[str, Any] = {}
    for options in commands.values():
        common = options | common
    own = commands[ctx.command.name or ""]
    defaults = dict(ctx.default_map or {})
    tables = [(None, common), *commands.items()]
    for table, options in tables:
        for key, value in _config_keys(values, table, commands, path).items():
            name = key.replace("_", "-")
            if name not in options:
                where = path.name if table is None else f"[{table}] of {path.name}"
                among = {*options, *(() if table else commands)}
                raise UnknownNameError(f"--config key in {where}", key, among)
            option = options[name]
            checked = _config_value(option, value, f"{path.name}: {key}", path)
            mine = own.get(name)
            if mine is None or table not in (None, ctx.command.name):
                continue
            if mine.metavar == option.metavar:
                defaults[mine.name] = checked
            elif mine.metavar not in _PATHS:
                # A limit must hold in every command that knows it, in the form it knows.
                defaults[mine.name] = _config_value(mine, value, f"{path.name}: {key}", path)
            # A folder to one command is a file to another: such a key needs its table.
    ctx.default_map = defaults
    return path


def _configurable(ctx: typer.Context) -> dict[str, dict[str, Any]]:
    """Returns command -> option's name -> option, for the commands that read a file."""
    group = ctx.parent.command if ctx.parent else None
    found = {}
    for name, command in getattr(group, "commands", {ctx.command.name: ctx.command}).items():
        options = {p.opts[0][2:]: p for p in command.params if p.opts[0].startswith("--")}
        if options.pop("config", None) is not None:
            # A module is code, and a configuration is data.
            for excluded in ("help", "import"):
                options.pop(excluded, None)
            found[name] = options
    return found


def _config_keys(
    values: dict[str, Any], table: str | None, commands: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Returns the keys of a command's table, or with None those outside of all tables."""
    if table is None:
        return {key: value for key, value in values.items() if key not in commands}
    keys = values.get(table, {})
    if not isinstance(keys, dict):
        raise ArgumentError(f"{path.name}: {table}", f"be a table, [{table}]", keys)
    return keys


def _config_value(option: Any, value: Any, origin: str, file: Path) -> Any:
    """Returns the value of a key as the option takes it; paths count from the file's folder."""
    text = isinstance(value, str)
    number = _is_number(value)
    if option.metavar in _BY_NAME:
        # A number for all, a table by name, or both as the flags are written.
        if isinstance(value, dict) and all(_is_number(item) for item in value.values()):
            return [f"{key}={item}" for key, item in value.items()]
        value = [str(value)] if number else value
    if option.is_flag:
        rule, right = "be true or false", isinstance(value, bool)
    elif option.multiple and option.metavar == "N":
        value = [value] if number else value
        rule = "be a whole number or a list of them"
        right = isinstance(value, list) and all(type(item) is int for item in value)
    elif option.multiple:
        value = [value] if text else value
        rule = "be a name or a list of names"
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif option.metavar == "SHARE":
        rule, right = "be a number between 0 and 1, without quotation marks", number
    elif option.metavar == "NUMBER":
        rule, right = "be a number, without quotation marks", number
    elif option.metavar == "N":
        rule, right = "be a whole number", number and isinstance(value, int)
    elif option.metavar == "SIZE":
        rule, right = 'be a size such as "96KiB", or bytes', text or isinstance(value, int)
        right = right and not isinstance(value, bool)
    else:
        rule, right = "be text in quotation marks", text
    if not right:
        raise ArgumentError(origin, rule, value)
    if option.metavar in _PATHS:
        return str(file.parent / value)
    if option.name == "target":
        return [str(file.parent / t) if t.endswith(".toml") else t for t in value]
    return str(value) if option.metavar == "SIZE" else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_name(argument: str, given: list[str] | None, number: Callable[[str], Any]) -> Any:
    """Returns ["0.8", "head=0.5"] as {"*": 0.8, "head": 0.5}, and ["0.8"] as 0.8."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.rpartition("=")
        try:
            found[name if equals else "*"] = number(value)
        except ValueError:
            kind = "a whole number" if number is int else "a number"
            raise ArgumentError(argument, f"be {kind}, or NAME= and {kind}", text) from None
    return found.get("*") if set(found) <= {"*"} else found


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgecompress {version('edgecompress')}")
        raise typer.Exit


_PATHS = ("FILE.npz", "FILE.txt", "FILE.json", "FILE", "DIR")
# Options with a value for all and exceptions by name.
_BY_NAME = (
    "[LAYER=]SHARE",
    "[LAYER=]N",
    "[STAGE=]N",
    "NAME[:OUTPUT]=NUMBER",
    "[NAME[:OUTPUT]=]NUMBER",
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", callback=_read_config, is_eager=True, metavar="FILE.toml",
        help="TOML file whose keys are the options of all commands (max_ram = \"96KiB\"), with "
        "[export], [check], ... for one command alone; flags win, and paths in it count from its "
        "folder.",
    ),
]  # fmt: skip
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", "-t", metavar="NAME",
        help="A name that `edgecompress targets` lists, or a .toml of your own. May be repeated.",
    ),
]  # fmt: skip
Evaluate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npz",
        help="Labelled data for the accuracy check: x and y; y_<output> or y0, y1, ... for "
        "several outputs.",
    ),
]
MaxFlash = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Budget for model and runtime code, e.g. 512KiB.")
]
MaxRam = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Budget for the tensor arena, e.g. 96KiB.")
]
MaxLatency = Annotated[
    str | None, typer.Option(metavar="TIME", help="Budget for one inference, e.g. 60ms or 800us.")
]
MaxFileSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Budget for the .tflite file alone.")
]
MinAccuracy = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Floor for the accuracy of every output that classifies, 0 to 1."
    ),
]
MetricNames = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME[:OUTPUT]",
        help="Metric to measure instead of the one that fits the model's loss: accuracy, "
        "binary_accuracy, top5, auc, mean_iou, mae, mse, rmse or r2. May be repeated.",
    ),
]
MinMetric = Annotated[
    list[str] | None,
    typer.Option(
        "--min-metric",
        metavar="NAME[:OUTPUT]=NUMBER",
        help="Floor for a metric, e.g. r2=0.9 or accuracy:label=0.9. May be repeated.",
    ),
]
MaxMetric = Annotated[
    list[str] | None,
    typer.Option(
        "--max-metric",
        metavar="NAME[:OUTPUT]=NUMBER",
        help="Ceiling for an error, e.g. mae=2.5 or mse:box=0.1. May be repeated.",
    ),
]
Kernels = Annotated[
    str | None,
    typer.Option(metavar="SET", help="Microcontroller kernels: cmsis-nn or reference."),
]
DecompressionMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory outside the arena for the decoded weights of a compressed file.",
    ),
]
Measured = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="What `edgecompress bench` or the demo app measured on the target, for its latency.",
    ),
]
AllowUndecided = Annotated[
    bool,
    typer.Option(
        "--allow-undecided",
        help="Exit 0 instead of 6 where a limit could not be decided; prints which.",
    ),
]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="MODULE",
        help="A module that registers layers of your own, which a model file may name; also from "
        "the current folder. May be repeated. It is code, and runs.",
    ),
]  # fmt: skip
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the log of converters, and tracebacks.")
]


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="A .keras or .h5 file, or a SavedModel folder; an int8 .tflite to compress.",
            metavar="MODEL",
        ),
    ],
    target: Targets = None,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="KIND",
            help="int8; compressed: weights coded for microcontrollers, without loss; "
            "binary-weights: weights of few bits for phones; sparse: pruned blocks left out of a "
            "float file; xnor: binary layers for Larq Compute Engine. For compressed and "
            "binary-weights MODEL may be an int8 .tflite.",
        ),
    ] = "int8",
    coding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE",
            help="With compressed: a code that may be used: lut, prune or huffman. May be "
            "repeated; all by default.",
        ),
    ] = None,
    decompression_memory: DecompressionMemory = None,
    weight_format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With binary-weights: the form that is checked: int8 (default), int4, int4-dense, "
            "int2 or smallest. All are written.",
        ),
    ] = None,
    smallest: Annotated[
        bool, typer.Option("--smallest", help="The same as --weight-format smallest.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Real inputs (x) as the model takes them: they set the int8 ranges that training "
            "did not learn, and the parity check runs on them.",
        ),
    ] = None,
    evaluate: Evaluate = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for all files.")
    ] = Path("build"),
    max_flash: MaxFlash = None,
    max_ram: MaxRam = None,
    max_latency: MaxLatency = None,
    max_file_size: MaxFileSize = None,
    min_accuracy: MinAccuracy = None,
    metric: MetricNames = None,
    min_metric: MinMetric = None,
    max_metric: MaxMetric = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME[:OUTPUT]=]NUMBER",
            help="How far a metric of the file may be worse than the Keras model's, e.g. 0.01 for "
            "one point of accuracy. May be repeated.",
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Floor for the agreement with the Keras model, 0 to 1."),
    ] = None,
    min_r2: Annotated[
        float | None,
        typer.Option(
            "--min-r2",
            metavar="SHARE",
            help="Floor for R2 of each column of values against the Keras model; 0.9 by default, "
            "0 for none.",
        ),
    ] = None,
    kernels: Kernels = None,
    c_sources: Annotated[
        bool,
        typer.Option("--c-sources", help="Also write C++ sources for microcontrollers into DIR/c."),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.txt",
            help="Names of the classes for bundle.json, one in each line; with a phone or the host "
            "among the targets.",
        ),
    ] = None,
    measured: Measured = None,
    import_modules: Import = None,
    config: Config = None,
    allow_undecided: AllowUndecided = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Convert a Keras model, run it in the targets' engines and check its budgets."""
    from edgecompress.pipeline import export as run

    with _progress(quiet) as progress:
        report = run(
            model,
            _required(target),
            file_format=file_format,
            calibration=calibration,
            evaluate=evaluate,
            output=output,
            max_flash=max_flash,
            max_ram=max_ram,
            max_latency=max_latency,
            max_file_size=max_file_size,
            min_accuracy=min_accuracy,
            metric=metric,
            min_metric=min_metric,
            max_metric=max_metric,
            max_drop=max_drop,
            min_agreement=min_agreement,
            min_r2=min_r2,
            kernels=kernels,
            codings=coding,
            decompression_memory=decompression_memory,
            weight_format=weight_format,
            smallest=smallest,
            c_sources=c_sources,
            labels=labels,
            measured=measured,
            import_modules=import_modules or (),
            progress=progress,
            verbose=verbose,
            argv=sys.argv,
        )
    _print_report(report, as_json)
    if not quiet:
        _tell(f"Wrote {output / 'report.json'} and report.html")
    return _exit_code(report, allow_undecided)


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="A .tflite file.", metavar="FILE")],
    target: Targets = None,
    evaluate: Evaluate = None,
    max_flash: MaxFlash = None,
    max_ram: MaxRam = None,
    max_latency: MaxLatency = None,
    max_file_size: MaxFileSize = None,
    min_accuracy: MinAccuracy = None,
    metric: MetricNames = None,
    min_metric: MinMetric = None,
    max_metric: MaxMetric = None,
    max_drop: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    kernels: Kernels = None,
    decompression_memory: DecompressionMemory = None,
    measured: Measured = None,
    config: Config = None,
    allow_undecided: AllowUndecided = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Check a .tflite file against targets and budgets; the exit code is the verdict."""
    from edgecompress.pipeline import check as run

    if max_drop:
        raise ArgumentError(
            "--max-drop", "go with `edgecompress export`, which has the Keras model beside it",
            max_drop[0], "Here use --min-metric accuracy=NUMBER.",
        )  # fmt: skip
    with _progress(quiet) as progress:
        report = run(
            model,
            _required(target),
            evaluate=evaluate,
            max_flash=max_flash,
            max_ram=max_ram,
            max_latency=max_latency,
            max_file_size=max_file_size,
            min_accuracy=min_accuracy,
            metric=metric,
            min_metric=min_metric,
            max_metric=max_metric,
            kernels=kernels,
            decompression_memory=decompression_memory,
            measured=measured,
            progress=progress,
            argv=sys.argv,
        )
    _print_report(report, as_json)
    return _exit_code(report, allow_undecided)


@app.command()
def bench(
    bundle: Annotated[
        Path,
        typer.Argument(
            help="Folder of an export with a phone or the host among its targets.",
            metavar="BUNDLE",
        ),
    ],
    host: Annotated[bool, typer.Option("--host", help="Measure on this computer.")] = False,
    adb: Annotated[
        bool, typer.Option("--adb", help="Measure on the phone that adb is connected to.")
    ] = False,
    serial: Annotated[
        str | None,
        typer.Option(metavar="SERIAL", help="Which phone, as `adb devices` lists them."),
    ] = None,
    runner: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What runs on the phone: app, the demo app (default); benchmark_model or litert, "
            "Google's benchmark programs, which check no outputs.",
        ),
    ] = "app",
    binary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The program of the runner benchmark_model or litert, built for the phone.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Kind of a file of the bundle, e.g. float32; may be repeated. Default: the file "
            "that ships.",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Threads of the runtime; may be repeated; default 1."),
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", help="Fresh processes, one after the other.")
    ] = 5,
    min_seconds: Annotated[
        float, typer.Option(metavar="NUMBER", help="Least duration of the timed part of each.")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(metavar="NUMBER", help="Seconds that each may take.")
    ] = 600.0,
    max_latency: MaxLatency = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.json", help="Default: measurement.json in BUNDLE."
        ),
    ] = None,
    config: Config = None,
    allow_undecided: AllowUndecided = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Measure an export on a phone or on this computer; the exit code is the verdict."""
    from edgecompress.pipeline import bench as run

    with _progress(quiet) as progress:
        result = run(
            bundle,
            host=host,
            adb=adb,
            serial=serial,
            runner=runner,
            binary=binary,
            models=model or (),
            threads=threads or (1,),
            processes=processes,
            min_seconds=min_seconds,
            timeout_s=timeout,
            max_latency=max_latency,
            output=output,
            progress=progress,
        )
    if as_json:
        _print_text(result.to_json().rstrip("\n"))
    else:
        _print_text(result.text())
    return _exit_code(result, allow_undecided)


@android.command()
def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of an export that the app ships instead of its own models.",
            metavar="BUNDLE",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.apk", help="The app.")
    ] = Path("edgecompress-demo.apk"),
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Sources of the app; default: those that come with edgecompress."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Build the demo app as an APK that is signed with a debug key."""
    from edgecompress.pipeline import build_app

    with _progress(quiet) as progress:
        made = build_app(bundle, output=output, source=source, progress=progress)
    _print_text(made.to_json().rstrip("\n") if as_json else made.text())
    return OK


@android.command()
def install(
    file: Annotated[
        Path,
        typer.Argument(help="What `edgecompress android build` wrote.", metavar="FILE.apk"),
    ] = Path("edgecompress-demo.apk"),
    serial: Annotated[
        str | None,
        typer.Option(metavar="SERIAL", help="Which phone, as `adb devices` lists them."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Install the demo app on the phone that adb is connected to."""
    from edgecompress.pipeline import install_app

    with _progress(quiet) as progress:
        installed = install_app(file, serial=serial, progress=progress)
    _print_text(installed.to_json().rstrip("\n") if as_json else installed.text())
    return OK


@app.command()
def compress(
    model: Annotated[
        Path, typer.Argument(help="A trained .keras or .h5 file of Keras 3.", metavar="MODEL")
    ],
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="How: deep-compression.")
    ] = "deep-compression",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Training data: inputs x, scaled as in training, and labels y (class numbers, "
            "one-hot rows or values); x alone for a model that gives its input back.",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="The same for validation; else a part of the data."),
    ] = None,
    validation_split: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Part of the data for validation; default 0.1."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for all files.")
    ] = Path("build"),
    remove_channels: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="First remove this share of every layer's filters. Off by default; it is what "
            "makes a model fast and its file smallest (0.5 is a start).",
        ),
    ] = None,
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]SHARE",
            help="Share of weights to prune; default 0.8. May be repeated for layers of their own: "
            "--sparsity 0.9 --sparsity head=0.5. 0 prunes nothing.",
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="SCOPE",
            help="global: the smallest weights of all layers go (default); layer: the same share "
            "in every layer.",
        ),
    ] = None,
    first_last: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="First and last layer: prune like the others (default), half, or keep.",
        ),
    ] = None,
    clusters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]N",
            help="Values that the weights of a layer share, beside zero; default 15, for "
            "convolutions 31. 0 clusters nothing.",
        ),
    ] = None,
    epochs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[STAGE=]N",
            help="Epochs of the stages remove, prune and cluster; default 10, 10 and 5.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Samples of a batch; default 64.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Of Adam as a stage begins; default 0.001."),
    ] = None,
    distill: Annotated[
        bool | None,
        typer.Option(
            "--distill/--no-distill",
            help="Let the model that came in teach with soft labels; default for classifiers.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Of the soft labels; default 4.")
    ] = None,
    soft_weight: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the soft labels in the loss; default 0.9."),
    ] = None,
    index_bits: Annotated[
        int | None,
        typer.Option(metavar="N", help="Bits of a distance in the paper's tables; default 5."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of split and training; default 0.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="How far the file's metric may fall below the model's, e.g. 0.01 for one point "
            "of accuracy; else exit 4.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start over instead of going on behind a finished stage."),
    ] = False,
    target: Targets = None,
    max_flash: MaxFlash = None,
    max_ram: MaxRam = None,
    max_latency: MaxLatency = None,
    max_file_size: MaxFileSize = None,
    min_accuracy: MinAccuracy = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Floor for the agreement with the Keras model, 0 to 1."),
    ] = None,
    kernels: Kernels = None,
    import_modules: Import = None,
    config: Config = None,
    allow_undecided: AllowUndecided = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a Keras model small, and write the file that ships with the papers' tables."""
    from edgecompress.recipes import compress as run
    from edgecompress.recipes.rendering import render

    if data is None:
        raise ArgumentError("--data", "be given", None, "An .npz file with x and y.")
    settings = {
        "validation_split": validation_split,
        "remove_channels": remove_channels,
        "sparsity": _by_name("--sparsity", sparsity, float),
        "scope": scope,
        "first_last": first_last,
        "clusters": _by_name("--clusters", clusters, int),
        "epochs": _by_name("--epochs", epochs, int),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "distill": distill,
        "temperature": temperature,
        "soft_weight": soft_weight,
        "index_bits": index_bits,
        "seed": seed,
        "max_drop": max_drop,
    }
    with _training_progress(quiet) as (progress, on_epoch):
        result = run(
            model,
            data,
            recipe,
            validation=validation,
            output=output,
            targets=target or ["cortex-m4"],
            max_flash=max_flash,
            max_ram=max_ram,
            max_latency=max_latency,
            max_file_size=max_file_size,
            min_accuracy=min_accuracy,
            min_agreement=min_agreement,
            kernels=kernels,
            fresh=fresh,
            import_modules=import_modules or (),
            progress=progress,
            on_epoch=on_epoch,
            verbose=verbose,
            argv=sys.argv,
            **{name: value for name, value in settings.items() if value is not None},
        )
    if as_json:
        _print_text(result.to_json().rstrip("\n"))
    else:
        render(result, _Console())
    if not quiet:
        _tell(f"Wrote {output / 'compression.html'}, compression.json and report.html")
    return _exit_code(result, allow_undecided)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="A .tflite, .keras or .h5 file.", metavar="FILE")],
    import_modules: Import = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Print a model's layers: shape, parameters, zeros, bits, MACs, bytes; and the totals."""
    from edgecompress.inspection import inspect_file, render

    with _progress(quiet) as progress:
        progress(f"Reading {model.name}")
        result = inspect_file(model, import_modules or (), verbose)
    if as_json:
        _print_text(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        render(result, _Console())
    return OK


@app.command()
def targets(
    name: Annotated[
        str | None, typer.Argument(help="Show this target alone, with its sources.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the targets, or show one: core, clock, memory, kernels, sources."""
    from edgecompress.reports.text import render_target, render_targets
    from edgecompress.targets.profile import load_target, target_names

    if name is not None:
        profile = load_target(name)
        if as_json:
            _print_text(json.dumps(profile.to_dict(), indent=1))
        else:
            render_target(profile, _Console())
        return OK
    profiles = [load_target(known) for known in target_names()]
    if as_json:
        _print_text(json.dumps([profile.to_dict() for profile in profiles], indent=1))
    else:
        render_targets(profiles, _Console())
    return OK


def _required(target: list[str] | None) -> list[str]:
    if not target:
        raise ArgumentError(
            "--target", "name at least one target", None, "`edgecompress targets` lists them."
        )
    return target


def _exit_code(result: Any, allow_undecided: bool) -> int:
    """Returns the exit code of a result, and names the limits that it leaves undecided."""
    if result.exit_code == UNDECIDED:
        names = "; ".join(result.undecided_limits)
        if allow_undecided:
            _tell(f"Accepted though undecided: {names}.")
        else:
            _tell(f"Undecided: {names}. Exit code 6; --allow-undecided makes it 0.")
    return int(result.exit_code_for(allow_undecided))


def _print_report(report: Any, as_json: bool) -> None:
    if as_json:
        _print_text(report.to_json().rstrip("\n"))
    else:
        from edgecompress.reports.text import render

        render(report, _Console())


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that tells what is going on: a spinner on a terminal, else lines."""
    if quiet:
        yield _or_end(lambda text: None)
    elif sys.stderr.isatty():
        # A descriptor of its own: standard error is redirected while libraries are kept quiet.
        with (
            os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal,
            SafeConsole(file=terminal).status("Starting") as status,
        ):
            yield _or_end(lambda text: status.update(plain(f"{text} ...")))
    else:
        start = time.monotonic()

        def line(text: str) -> None:
            _tell(f"[{time.monotonic() - start:5.1f} s] {text}")

        yield _or_end(line)


@contextmanager
def _training_progress(
    quiet: bool,
) -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
    """Yields two functions, for stages and for epochs: a bar on a terminal, else lines."""
    if quiet or not sys.stderr.isatty():
        with _progress(quiet) as progress:
            yield progress, lambda epoch: progress(epoch.text)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # A descriptor of its own: standard error is redirected while libraries are kept quiet.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal,
        Progress(*columns, console=SafeConsole(file=terminal), transient=True) as bars,
    ):
        bar = bars.add_task("Starting", total=None)
        yield (
            _or_end(lambda text: bars.reset(bar, total=None, description=plain(f"{text} ..."))),
            _or_end(
                lambda epoch: bars.update(
                    bar,
                    total=epoch.epochs,
                    completed=epoch.epoch,
                    description=plain(epoch.text),
                )
            ),
        )


def _or_end(tell: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns a function that ends the command first, where a signal has asked for it in vain.

    What the signal's handler raises is lost in code that catches everything, as some libraries do
    while they are imported.
    """

    def told(what: Any) -> None:
        if _CAME:
            raise _Interrupted
        tell(what)

    return told


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into an exception, so that no file and no process is left."""
    _CAME.clear()
    # Only the main thread may install handlers.
    numbers = [signal.SIGINT, signal.SIGTERM] if _in_main_thread() else []

    def handle(number: int, frame: Any) -> None:
        _CAME.append(number)
        raise _Interrupted

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _tell(line: str) -> None:
    # Whether somebody listens there has no say in the verdict.
    with suppress(OSError):
        print(shown(line), file=sys.stderr, flush=True)


def _fail(message: str) -> None:
    _tell(f"edgecompress: {' '.join(message.split())}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Example:
        >>> main(["targets", "no-such-board"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    verbose = "-v" in arguments or "--verbose" in arguments
    _prepare(verbose)
    with _ending_on_signals():
        return _run(arguments, verbose)


def _prepare(verbose: bool) -> None:
    """Sets what the process needs before any framework is loaded."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "3")
    if "keras" not in sys.modules:
        # Conversion is TensorFlow's; a training that runs meanwhile keeps the accelerator.
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # Closed by the caller (`>&-`): what is printed goes nowhere, in the same descriptor's place.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # File names may hold what the terminal cannot show.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str], verbose: bool) -> int:
    """Runs a command; every way it can end becomes one line and an exit code."""
    try:
        result = typer.main.get_command(app).main(
            arguments, prog_name="edgecompress", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else OK
    except _UsageError as error:  # type: ignore[misc]
        command = error.ctx.command_path if error.ctx else "edgecompress"
        _fail(f"{error.format_message().rstrip('.')}. `{command} --help` shows the usage.")
        return USAGE
    except (BrokenPipeError, SystemExit):
        # The reader of a pipe went away (`| head`): not an error, and nothing more to print.
        # The command line's own pages (--help) report it as SystemExit.
        _leave_pipe()
        return OK
    except (Exception, KeyboardInterrupt, _Interrupted) as error:
        if verbose:
            # Marked: the error's own text may have lines, and none of them is ours.
            for line in traceback.format_exc().splitlines():
                _tell(f"| {line}")
        if _CAME or isinstance(error, (KeyboardInterrupt, typer.Abort)):
            _fail("interrupted; no file was left half-written.")
            return _SIGNAL_BASE + (_CAME[0] if _CAME else signal.SIGINT)
        if isinstance(error, EdgeCompressError):
            _fail(str(error))
            return error.exit_code
        if isinstance(error, OSError):
            # A full disk, no more processes, ...: the machine's trouble and no defect.
            _fail(f"cannot go on: {error}.")
            return FAILURE
        if isinstance(error, MemoryError):
            _fail(f"cannot go on: the memory does not suffice for `{' '.join(arguments)}`.")
            return FAILURE
        _fail(
            f"internal error: {type(error).__name__}: {error}. This is a defect; run again with "
            "--verbose and report the traceback."
        )
        return FAILURE
