"""`export`: a Keras model, or an int8 .tflite file, to the file that ships.

request -> build -> write
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.results import Report
from edgecompress.pipeline.builder import build
from edgecompress.pipeline.options import ExportOptions, FormatOptions
from edgecompress.pipeline.request import build_request, silent, usable_folder
from edgecompress.pipeline.writer import write
from edgecompress.targets.family import family_of

if TYPE_CHECKING:
    from edgecompress.targets.profile import TargetProfile


def export(
    model: Any,
    targets: Sequence[str | Path | TargetProfile],
    *,
    file_format: str = FormatOptions.file_format,
    calibration: Any = None,
    evaluate: Any = None,
    output: Path | str = ExportOptions.output,
    name: str | None = None,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    metric: str | Sequence[str] | None = None,
    min_metric: Mapping[str, float] | Sequence[str] | None = None,
    max_metric: Mapping[str, float] | Sequence[str] | None = None,
    max_drop: float | Mapping[str, float] | Sequence[str] | None = None,
    min_agreement: float | None = None,
    min_r2: float | None = None,
    kernels: str | None = None,
    operators: Any = None,
    max_energy: str | float | None = None,
    power: str | float | None = None,
    c_sources: bool = False,
    labels: Path | str | Sequence[str] | None = None,
    measured: Path | str | None = None,
    baseline: Report | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    import_modules: Sequence[str] = (),
    progress: Callable[[str], None] = silent,
    verbose: bool = False,
    argv: Sequence[str] = (),
    **options: Any,
) -> Report:
    """Converts a model, runs it in the targets' engines and checks its budgets.

    Writes the files of the format (`<model>_float32.tflite`, `<model>_int8.tflite`, ...), their
    record, `report.json` and `report.html` into `output`, all at once and only after all work has
    succeeded. With a phone or the host among the targets also `bundle.json`, which `edgecompress
    bench` and the demo app run, and golden inputs and outputs.

    Args:
        model: A Keras model, or the path of a .keras or .h5 file or a SavedModel folder. Formats
            that code int8 weights also take the path of an int8 .tflite file.
        targets: Names that `edgecompress targets` lists, paths of own .toml profiles, or profiles.
        file_format: `"int8"`; `"compressed"`: weights coded without loss for TensorFlow Lite
            Micro, less flash for more arena and time; `"binary-weights"`: binary, ternary and other
            weights of few levels in fewer bits, for phones; `"sparse"`: float32 with pruned blocks
            of fully-connected layers left out, for phones; `"xnor"`: layers of `BinaryConv2D` and
            `BinaryDense` for Larq Compute Engine. Defaults to `"int8"`.
        calibration: Real inputs as the model takes them: an array, a list of arrays for several
            inputs, a mapping from their names, a tf.data.Dataset or a generator (or a function that
            returns one) of which 1,000 samples are taken, or the path of an .npz or .npy file (key
            `x`; labels `y` are used as `evaluate` if that is not given). They set ranges that
            training did not learn, and parity is measured on them. Not with a .tflite file, which
            has its ranges.
        evaluate: Labelled data for the accuracy check: (x, y), or the path of an .npz file.
        output: Folder of the files; created if missing.
        name: Name that the files begin with, e.g. `"kws"` for `kws_int8.tflite`. Defaults to the
            name of the model file, for a model in memory to `model.name`.
        max_flash: Budget for the model and the runtime's code, e.g. `"512KiB"`, or bytes.
        max_ram: Budget for the tensor arena, decoded weights included, e.g. `"96KiB"`, or bytes.
        max_latency: Budget for one inference, decoding included, e.g. `"60ms"`, or microseconds.
        max_file_size: Budget for the shipped file alone.
        min_accuracy: Floor for the accuracy of the file in the target's engine, 0 to 1; it applies
            to every classifying output.
        metric: Metrics to measure, `NAME` or `NAME:OUTPUT`: `accuracy`, `binary_accuracy`, `top5`,
            `auc`, `mean_iou`, `mae`, `mse`, `rmse`, `r2`. Defaults to what fits the compiled loss,
            else the operator that makes the output, else the labels.
        min_metric: Floors of metrics where higher is better, e.g. `{"r2:box": 0.9}`.
        max_metric: Ceilings of errors, e.g. `{"mae:box": 2.5}`.
        max_drop: How much worse a metric of the file may be than that of the Keras model, in its
            own unit: a number for all, e.g. 0.01 for one point of accuracy, or by metric.
        min_agreement: Floor for the share of predictions that agree with the Keras model.
            Defaults to 0.9 for classifying outputs and none for values.
        min_r2: Floor for R2 of each column of values against the Keras model, 0 to 1; 0 for none,
            of scores of classes neither. Defaults to 0.9.
        kernels: Kernel set of microcontrollers, `cmsis-nn` or `reference`, instead of the
            profile's.
        operators: What the firmware has of its runtime's operators: the name of a list
            (`esp-tflite-micro`, `esphome`), or the path of a .toml file; a file with any other
            fails. Defaults to all.
        max_energy: Budget for the energy of one inference, e.g. `"5mJ"`, or microjoules.
        power: What the board draws while a model runs, e.g. `"41mW"`, or milliwatts. Defaults to
            the range of published results.
        c_sources: Also write C++ sources for TensorFlow Lite Micro into `<output>/c`: the model as
            an array, a resolver of exactly its operators, the arena size, an example program.
        labels: Names of the classes for the bundle, in the order of the first output: a list, or a
            text file with one in each line. Needs a phone or the host among the targets.
        measured: A file that `edgecompress bench` or the demo app wrote for this model and one of
            the targets: the latency of that target is the measured one.
        baseline: An earlier report; the HTML page compares against it.
        history: Training curves for the HTML page, name -> values (`model.fit(...).history`).
        import_modules: Modules that register custom layers used by a model file
            (`keras.saving.register_keras_serializable`); found in the current folder, too. A file
            is read in a separate process, where classes registered in this one are unknown.
        progress: Called with a short text as each stage begins.
        verbose: Let the converters write their log to standard error.
        argv: The command for the report.
        options: The format's own, as `edgecompress export --help` lists them. With `"int8"`:
            `precision`, a number format; `keep_float` and `keep_int16`, regular expressions for
            layers that stay in float or get int16 activations; `sensitivity`, whether to measure
            the damage of each layer and search the layers to keep. With `"compressed"`:
            `codings`, the codes that may be used (`lut`, `prune`, `huffman`; default all);
            `decompression_memory`, memory outside the arena that the firmware passes to
            `SetDecompressionMemory` for decoded weights, which the C++ sources then set;
            `min_saving`, bytes below which a tensor stays as it is. With `"binary-weights"`:
            `weight_format`, the form that is checked (`int8` by default, `int4`, `int4-dense`,
            `int2`, `smallest`); `smallest`, short for that.

    Returns:
        The report; `report.exit_code` is 0 if every limit of every target is met.

    Raises:
        EdgeCompressError: an argument, a file or a conversion is wrong, or a file that must
            compute the same does not; nothing was written.

    Example:
        >>> report = ec.export(model, ["nucleo-l4r5zi"], calibration=x[:200],
        ...                    max_ram="96KiB", output="build/")  # doctest: +SKIP
        >>> report.verdict  # doctest: +SKIP
        'pass'
    """
    options |= {
        "kernels": kernels,
        "operators": operators,
        "max_energy": max_energy,
        "power": power,
    }
    request = build_request(
        model,
        targets,
        file_format=file_format,
        # An empty list of codes means no restriction.
        options={name: value for name, value in options.items() if value != ()},
        calibration=calibration,
        evaluate=evaluate,
        name=name,
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
        labels=labels,
        measured=measured,
        import_modules=import_modules,
        verbose=verbose,
    )
    folder = usable_folder(output)
    if c_sources and not any(family_of(profile).c_sources for profile in request.profiles):
        raise ArgumentError(
            "--c-sources",
            "go with a microcontroller among the targets",
            [profile.name for profile in request.profiles],
        )
    made = build(request, progress)
    progress("Writing the files")
    return write(
        made,
        folder,
        argv=tuple(argv) or tuple(sys.argv),
        c_sources=c_sources,
        baseline=baseline,
        history=history,
    )
