"""The demonstration: train, compress, export and check a small model on Fashion-MNIST.

The sample next to this file holds 5,000 training and 2,000 test images of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist, MIT licence, Copyright (c) 2017 Zalando SE).
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.files import write_atomic
from edgecompress.engines.registry import TFLM

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from edgecompress.core.results import CheckResult, Report

SAMPLE = Path(__file__).with_name("fashion_mnist_sample.npz")
MICROCONTROLLER = "nucleo-l4r5zi"
PHONE = "pixel-4"
# Latency budget of one inference, for all targets and for phone measurements.
MAX_LATENCY = "100ms"
LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CALIBRATION_SAMPLES = 500
BATCH = 64


@dataclass(frozen=True)
class Line:
    """One line of the before/after table, each value as text.

    Attributes:
        name: What is compared.
        dense: The trained model as a float32 file.
        int8: The same model quantized after training.
        compressed: The pruned, shrunk and quantized model.
    """

    name: str
    dense: str
    int8: str
    compressed: str


@dataclass(frozen=True)
class Result:
    """What the demonstration found.

    Attributes:
        report: On the compressed model.
        baseline: On the dense model.
        keras_accuracy: Top-1 of the dense Keras model on the test images.
        qat_accuracy: Top-1 of the compressed Keras model under simulated quantization.
        agreement: Share of test images on which the int8 file in the microcontroller's engine
            agrees with the latter.
        lines: The table.
    """

    report: Report
    baseline: Report
    keras_accuracy: float
    qat_accuracy: float
    agreement: float
    lines: tuple[Line, ...]


def load_sample() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns x_train (5000, 28, 28, 1), y_train, x_test (2000, 28, 28, 1), y_test; x in [0, 1]."""
    import numpy as np

    with np.load(SAMPLE, allow_pickle=False) as data:
        x, x_test = (data[key][..., None].astype("float32") / 255 for key in ("x_train", "x_test"))
        return x, data["y_train"].astype("int32"), x_test, data["y_test"].astype("int32")


def build_model() -> Any:
    """Returns the model to compress: a small convolutional network with 30,000 parameters."""
    import keras
    from keras import layers

    def block(convolution: Any) -> list[Any]:
        return [convolution, layers.BatchNormalization(momentum=0.9), layers.ReLU()]

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *block(layers.Conv2D(16, 3, padding="same", use_bias=False)),
            layers.MaxPooling2D(),
            *block(layers.Conv2D(32, 3, padding="same", use_bias=False)),
            layers.MaxPooling2D(),
            *block(layers.DepthwiseConv2D(3, padding="same", use_bias=False)),
            *block(layers.Conv2D(48, 1, use_bias=False)),
            # A Dense layer over all pixels, as a convolution: old versions of TensorFlow Lite (2.6)
            # read the scale of the first class for all classes of a quantized Dense layer.
            layers.Conv2D(10, 7, name="classes"),
            layers.Flatten(),
        ],
        name="fashion",
    )


def run(output: Path, epochs: int = 8, say: Callable[[str], None] = print) -> Result:
    """Trains, compresses, exports and checks; writes everything into `output`.

    Args:
        output: Folder for the models, `report.json` and `report.html`.
        epochs: Epochs of the first two training phases; the third has twice as many.
        say: Called with a line of text as each stage begins or ends.

    Returns:
        The reports and the table.
    """
    from edgecompress.core.suppress_output import suppress_output

    # TensorFlow prints to standard error when it is loaded.
    with suppress_output():
        import keras

    import edgecompress as ec
    from edgecompress.core.record import record_of
    from edgecompress.precisions.simulation import simulate
    from edgecompress.reports.figures import join_curves

    keras.utils.set_random_seed(1)
    x, y, x_test, y_test = load_sample()
    output.mkdir(parents=True, exist_ok=True)

    def fit(
        model: Any, rate: float, epochs: int = epochs, callbacks: Sequence[Any] = ()
    ) -> dict[str, list[float]]:
        steps = -(-len(x) // BATCH) * epochs
        model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        start = time.monotonic()
        history = model.fit(
            x, y, BATCH, epochs, verbose=0, callbacks=callbacks, validation_data=(x_test, y_test)
        ).history
        say(
            f"   {epochs} epochs in {time.monotonic() - start:.0f} s, "
            f"test accuracy {history['val_accuracy'][-1]:.4f}"
        )
        return {name: [float(value) for value in values] for name, values in history.items()}

    def export(model: Any, folder: Path, **more: Any) -> Report:
        return ec.export(
            model,
            [MICROCONTROLLER, PHONE, "host"],
            calibration=x[:CALIBRATION_SAMPLES],
            evaluate=(x_test, y_test),
            max_latency=MAX_LATENCY,
            labels=LABELS,
            output=folder,
            argv=("python", "-m", "edgecompress.demo"),
            progress=lambda text: say(f"   {text}"),
            **more,
        )

    say("1. Train a dense model, and export it for comparison")
    model = build_model()
    curves = [fit(model, 5e-3)]
    keras_accuracy = _accuracy(model, x_test, y_test)
    baseline = export(model, output / "dense")

    say("2. Group lasso: the weakest half of the filters goes to zero and is removed")
    lasso = ec.GroupLasso(1e-4, groups="filters", final_sparsity=0.5)
    curves.append(fit(model, 2e-3, callbacks=[lasso]))
    model = ec.finalize(model)
    for layer, (before, after) in record_of(model).removed_channels.items():
        say(f"   {layer}: {before} -> {after} channels")

    say("3. Prune and quantize what is left while it trains")
    pruning = ec.MagnitudePruning(
        ec.PolynomialDecay(final_sparsity=0.5, begin_step=0, end_step=400, frequency=20)
    )
    quantization = ec.QuantizationAwareTraining(ec.Int8(), begin_epoch=epochs)
    curves.append(fit(model, 2e-3, 2 * epochs, [pruning, quantization]))
    model = ec.finalize(model)
    model.save(output / "fashion.keras")

    say("4. Export: convert, run in the engines, check the targets")
    history = join_curves(curves)
    report = export(output / "fashion.keras", output, baseline=baseline, history=history)

    say("5. Compare the int8 file with the Keras model on all test images")
    simulated = simulate(model)
    qat_accuracy = _accuracy(simulated, x_test, y_test)
    agreement = _agreement(output / "fashion_int8.tflite", simulated, x_test)
    floats = (output / "dense" / "fashion_float32.tflite").read_bytes()
    lines = _table(baseline, report, len(zlib.compress(floats, 9)), keras_accuracy, qat_accuracy)
    result = Result(report, baseline, keras_accuracy, qat_accuracy, agreement, lines)
    summary = {
        "keras_accuracy": keras_accuracy,
        "qat_accuracy": qat_accuracy,
        "int8_accuracy": _value(report, MICROCONTROLLER, "accuracy"),
        "agreement": agreement,
        "table": [asdict(line) for line in lines],
    }
    write_atomic(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    return result


def _accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    return float((model.predict(x, verbose=0).argmax(1) == y).mean())


def _agreement(path: Path, model: Any, x: np.ndarray) -> float:
    from edgecompress.converters.verify import verify

    reference = model.predict(x, verbose=0)
    return verify(path.read_bytes(), reference=reference, samples=x, engine=TFLM).agreement


def _value(report: Report, target: str, rule: str) -> float | None:
    checks: dict[tuple[str, str], CheckResult] = {
        (t.name, c.rule): c for t in report.targets for c in t.checks
    }
    return checks[target, rule].measured


def _table(
    baseline: Report,
    report: Report,
    float_download: int,
    keras_accuracy: float,
    qat_accuracy: float,
) -> tuple[Line, ...]:
    from edgecompress.reports.words import format_value

    def values(
        name: str, unit: str, pick: Callable[[Report], float | None], dense: str = ""
    ) -> Line:
        before, after = (format_value(pick(r), unit) for r in (baseline, report))
        return Line(name, dense, before, after)

    def check(target: str, rule: str) -> Callable[[Report], float | None]:
        return lambda r: _value(r, target, rule)

    dense = baseline.model
    floats = {a.kind: a for a in baseline.artifacts or ()}["float32"]
    size = format_value(floats.bytes, "bytes")
    download = format_value(float_download, "bytes")
    accuracy = values("accuracy of the .tflite", "share", check(MICROCONTROLLER, "accuracy"))
    return (
        values("parameters", "count", lambda r: r.model.parameters, f"{dense.parameters:,}"),
        values("MACs", "count", lambda r: r.model.macs, f"{dense.macs:,}"),
        values("file", "bytes", lambda r: r.model.file_bytes, size),
        values("compressed (download)", "bytes", lambda r: r.model.compressed_bytes, download),
        values(f"tensor arena, {MICROCONTROLLER}", "bytes", check(MICROCONTROLLER, "arena")),
        values(
            f"latency, {MICROCONTROLLER}, predicted",
            "microseconds",
            check(MICROCONTROLLER, "latency"),
        ),
        values("latency, this machine, measured", "microseconds", check("host", "latency")),
        Line(f"latency, {PHONE}", "", "not measured", "not measured"),
        Line(
            "accuracy of the Keras model",
            format_value(keras_accuracy, "share"),
            format_value(keras_accuracy, "share"),
            format_value(qat_accuracy, "share"),
        ),
        accuracy,
    )


def print_result(result: Result, console: Console) -> None:
    """Prints the table and how much worse the int8 file is than the Keras model."""
    from edgecompress.core.tables import Column, print_table
    from edgecompress.reports.text import render

    render(result.report, console)
    console.print()
    print_table(
        console,
        [
            Column("", left=True),
            Column("dense float32", drop=1),
            Column("dense int8"),
            Column("compressed int8"),
        ],
        [[line.name, line.dense, line.int8, line.compressed] for line in result.lines],
    )
    accuracy = _value(result.report, MICROCONTROLLER, "accuracy")
    if accuracy is not None:
        console.print()
        console.print(
            f"The int8 file in TensorFlow Lite Micro agrees with the Keras model on "
            f"{result.agreement:.2%} of the test images; its accuracy differs by "
            f"{100 * (accuracy - result.qat_accuracy):+.2f} points.",
            soft_wrap=True,
        )
