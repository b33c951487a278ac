"""The options of the commands: flags, Python keywords and TOML keys at once.

What belongs to a format, a recipe, a runner or a family of targets is declared there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import (
    ByNameText,
    Choice,
    Number,
    Path,
    Size,
    Text,
    Time,
    many,
    option,
    share,
    whole,
)
from edgecompress.core.user_functions import PathOrFunction

_TARGET = "A name that `edgecompress targets` lists, or the path of your own .toml file."


@dataclass(frozen=True)
class TargetOptions:
    """The targets of a command."""

    targets: Sequence[Any] = option((), _TARGET, many(Text("NAME")), flag="--target", short="-t")


@dataclass(frozen=True)
class RecipeTargetOptions:
    """The targets of `compress`."""

    targets: Sequence[Any] = option(
        ("cortex-m4",), _TARGET, many(Text("NAME")), flag="--target", short="-t"
    )


@dataclass(frozen=True)
class BudgetOptions:
    """Limits of a file on a target; they override the target's own."""

    max_flash: int | None = option(None, "Budget for model and runtime code, e.g. 512KiB.", Size())
    max_ram: int | None = option(None, "Budget for the tensor arena, e.g. 96KiB.", Size())
    max_latency: float | None = option(
        None, "Budget for one inference, e.g. 60ms or 800us.", Time()
    )
    max_file_size: int | None = option(None, "Budget for the .tflite file alone.", Size())
    min_accuracy: float | None = option(
        None, "Floor for the accuracy of every classifying output, 0 to 1.", share()
    )


@dataclass(frozen=True)
class ScoringOptions:
    """What to measure on labelled data, and its limits."""

    metric: Sequence[str] | None = option(
        None,
        "Metric to measure instead of the one that fits the model's loss: accuracy, "
        "binary_accuracy, top5, auc, mean_iou, mae, mse, rmse or r2.",
        many(Text("NAME[:OUTPUT]")),
    )
    min_metric: Any = option(
        None,
        "Floor for a metric, e.g. r2=0.9 or accuracy:label=0.9.",
        ByNameText("NAME[:OUTPUT]=NUMBER"),
    )
    max_metric: Any = option(
        None,
        "Ceiling for an error, e.g. mae=2.5 or mse:box=0.1.",
        ByNameText("NAME[:OUTPUT]=NUMBER"),
    )


_EVALUATE = (
    "Labelled data for the accuracy check: x and y; `y_<output>` or y0, y1, ... for several "
    "outputs."
)
_DROP = "[NAME[:OUTPUT]=]NUMBER"


@dataclass(frozen=True)
class MeasuredOptions:
    """Earlier measurements."""

    measured: str | None = option(
        None,
        "Measurement from `edgecompress bench` or the demo app, for the target's latency.",
        Path("FILE.json"),
    )


def _formats() -> Mapping[str, Any]:
    from edgecompress.converters.formats import FORMATS

    return FORMATS


@dataclass(frozen=True)
class FormatOptions:
    """Which kind of file to make."""

    file_format: str = option(
        "int8",
        "Kind of file. For compressed and binary-weights, MODEL may be an int8 .tflite file.",
        Choice("KIND", names=_formats),
        flag="--format",
    )


@dataclass(frozen=True)
class DataOptions:
    """Data that `export` runs the model on."""

    calibration: Any = option(
        None,
        "Calibration set: real inputs (x) as the model takes them. They set the int8 ranges that "
        "training did not learn, and the parity check runs on them.",
        Path("FILE.npz"),
    )
    evaluate: Any = option(None, _EVALUATE, Path("FILE.npz"))


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export` only."""

    output: str = option("build", "Output folder.", Path("DIR"), short="-o")
    max_drop: Any = option(
        None,
        "How much worse than the Keras model's a metric of the file may be, e.g. 0.01 for one "
        "point of accuracy.",
        ByNameText(_DROP),
    )
    min_agreement: float | None = option(
        None, "Floor for the agreement with the Keras model, 0 to 1.", share()
    )
    min_r2: float | None = option(
        None,
        "Floor for the R2 of each column of values against the Keras model; 0 for none.",
        share(),
        unset="0.9",
    )
    c_sources: bool = option(False, "Also write C++ sources for microcontrollers into DIR/c.")
    labels: Any = option(
        None,
        "Class names for bundle.json, one per line; needs a phone or the host among the targets.",
        Path("FILE.txt"),
    )


@dataclass(frozen=True)
class CheckOptions:
    """Options of `check` only."""

    evaluate: Any = option(None, _EVALUATE, Path("FILE.npz"))
    # Accepted, to explain why it is not available here.
    max_drop: Any = option(None, "", ByNameText(_DROP), hidden=True)


def _runners() -> Mapping[str, Any]:
    from edgecompress.targets.phones.runners import RUNNERS

    return RUNNERS


@dataclass(frozen=True)
class BenchOptions:
    """Options of `bench`."""

    host: bool = option(False, "Measure on this computer.")
    adb: bool = option(False, "Measure on the phone that adb is connected to.")
    serial: str | None = option(
        None, "Serial number of the phone, as listed by `adb devices`.", Text("SERIAL")
    )
    runner: str = option(
        "app",
        "What runs on the phone.",
        Choice(names=_runners),
    )
    models: Sequence[str] = option(
        (),
        "Kind of file in the bundle, e.g. float32.",
        many(Text("KIND")),
        flag="--model",
        unset="the file that ships",
    )
    threads: Sequence[int] = option((1,), "Threads of the runtime.", many(whole()))
    processes: int = option(5, "Number of fresh processes, run one after another.", whole())
    min_seconds: float = option(
        1.0, "Minimum duration of the timed part of each process, in seconds.", Number()
    )
    timeout_s: float = option(
        600.0, "Seconds that each process may take.", Number(), flag="--timeout"
    )
    max_latency: float | None = option(
        None, "Budget for one inference, e.g. 60ms or 800us.", Time(), unset="the export's"
    )
    output: str | None = option(
        None,
        "The measurement file.",
        Path("FILE.json"),
        short="-o",
        unset="measurement.json in BUNDLE",
    )


@dataclass(frozen=True)
class TrainingDataOptions:
    """What a model is trained on."""

    data: Any = option(
        None,
        "Training data: an .npz file with inputs x, scaled as in training, and labels y (class "
        "numbers, one-hot rows or values; only x for a model that reconstructs its input); a "
        "folder of images, one subfolder for each class; or module:function, which returns (x, y), "
        "a tf.data.Dataset of batches or a keras.utils.PyDataset.",
        PathOrFunction(),
    )
    validation: Any = option(
        None, "The same for validation; default: part of --data.", PathOrFunction()
    )
    data_files: Sequence[Any] = option(
        (),
        "A file or folder that a function reads, outside its module's own folder.",
        many(Path("PATH")),
    )
    pixels: str | None = option(
        None,
        "Range of pixels that the model takes from a folder of images.",
        Choice("RANGE", names=("0..255", "0..1", "-1..1")),
    )
    steps_per_epoch: int | None = option(
        None, "Batches of an epoch, for a dataset without an end.", whole(1)
    )


@dataclass(frozen=True)
class CompressOptions:
    """Options of `compress`, whatever the recipe."""

    teachers: Sequence[Any] = option(
        (),
        "A larger trained model of the same inputs and outputs, to teach instead of the original "
        "one. Several count as one, the mean of their logits.",
        many(Path("FILE.keras")),
        flag="--teacher",
    )
    output: str = option("build", "Output folder.", Path("DIR"), short="-o")
    fresh: bool = option(False, "Start over instead of resuming after the last finished stage.")
    min_agreement: float | None = option(
        None, "Floor for the agreement with the Keras model, 0 to 1.", share()
    )


@dataclass(frozen=True)
class AppOptions:
    """Options of `android build`."""

    output: str = option("edgecompress-demo.apk", "The app.", Path("FILE.apk"), short="-o")
    source: str | None = option(
        None, "Sources of the app.", Path("DIR"), unset="those that come with edgecompress"
    )


@dataclass(frozen=True)
class PhoneOptions:
    """Which phone a command talks to."""

    serial: str | None = option(
        None, "Serial number of the phone, as listed by `adb devices`.", Text("SERIAL")
    )


@dataclass(frozen=True)
class ModuleOptions:
    """User code that a model file may need."""

    import_modules: Sequence[str] = option(
        (),
        "A module that registers custom layers named in a model file; it may be in the current "
        "folder. It is code, and is executed.",
        many(Text("MODULE")),
        flag="--import",
    )
