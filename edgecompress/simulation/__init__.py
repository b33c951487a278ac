"""What a model will compute once it is integers: as training simulates it, or as an engine does.

`simulate(model)` computes as validation in training did. `simulate(model, engine="litert")` and
`engine="tflm"` compute the exported int8 file with the integer arithmetic of that engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core.errors import ArgumentError

if TYPE_CHECKING:
    from edgecompress.core.record import CompressionRecord
    from edgecompress.flatbuffers.artifact import Artifact
    from edgecompress.precisions.base import Precision


@dataclass(frozen=True)
class EngineSimulation:
    """An int8 file, computed with the integer arithmetic of an engine but without the engine.

    Attributes:
        artifact: The file. The names of its tensors are those of layers and taps where known.
        engine: `litert` or `tflm`.

    Raises:
        UnsupportedModelError: an operator's arithmetic in that engine is not known; the text names
            the operator and its output.

    Example:
        >>> simulated = EngineSimulation(artifact, "tflm")  # doctest: +SKIP
        >>> simulated.predict(x_test).argmax(1)  # doctest: +SKIP
    """

    artifact: Artifact = field(repr=False)
    engine: str

    def __post_init__(self) -> None:
        """Refuses what cannot be simulated."""
        from edgecompress.simulation.interpreter import check

        check(self.artifact.flat, self.engine)

    def codes(
        self, inputs: Sequence[np.ndarray], tensors: Sequence[int] = ()
    ) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
        """Returns the file's outputs for inputs in the types of the file.

        Args:
            inputs: One array for each input, as `engines.run.run_engine` takes them.
            tensors: Indices of further tensors to return.

        Returns:
            A list of outputs, and a mapping of tensor index to values.

        Raises:
            ArgumentError: the inputs do not fit the file.
            UnsupportedModelError: an operator cannot be simulated; the text names it.
        """
        from edgecompress.simulation.interpreter import run

        return run(self.artifact.flat, self.engine, inputs, tensors)

    def predict(self, x: np.ndarray | Sequence[np.ndarray]) -> Any:
        """Returns the outputs for real inputs, as an application sees them.

        Args:
            x: Samples in real units, one array or one for each input; they are rounded to the
                types of the file's inputs.

        Returns:
            Real outputs, scale * (code - zero point), float64; a list if there are several.

        Raises:
            ArgumentError, UnsupportedModelError: as in `codes`.
        """
        from edgecompress.converters.real_values import dequantize, listed, quantized_inputs

        flat = self.artifact.flat
        outputs, _ = self.codes(quantized_inputs(flat, listed(x)))
        real = [
            dequantize(values, flat.tensors[index])
            for values, index in zip(outputs, flat.outputs, strict=True)
        ]
        return real if len(real) > 1 else real[0]

    def tensors(self, x: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the real values of every computed tensor, by name, in the order of execution.

        They show at which layer the engine leaves what training computed.

        Args:
            x: As in `predict`; all values of all samples are kept in memory.

        Raises:
            ArgumentError, UnsupportedModelError: as in `codes`.

        Example:
            >>> engine, trained = simulate(model, engine="tflm"), model.predict(x)  # doctest: +SKIP
            >>> abs(engine.tensors(x)["dense"] - trained).max()  # doctest: +SKIP
        """
        from edgecompress.converters.real_values import dequantize, listed, quantized_inputs

        flat = self.artifact.flat
        indices = [index for operator in flat.operators for index in operator.outputs]
        _, values = self.codes(quantized_inputs(flat, listed(x)), indices)
        return {
            flat.tensors[index].name: dequantize(values[index], flat.tensors[index])
            for index in indices
        }


def simulate(
    model: Any,
    record: CompressionRecord | None = None,
    quantizer: Precision | None = None,
    *,
    engine: str | None = None,
    calibration: Sequence[np.ndarray] | None = None,
) -> Any:
    """Returns what computes a model as integers will.

    Args:
        model: A trained Sequential or Functional model; not changed.
        record: Holds the learnt ranges. Defaults to the record attached to `model`, if its weights
            are still those with which the ranges were learnt.
        quantizer: The precision. Defaults to the one the record says it was trained in, else int8.
        engine: None for a Keras model that computes as validation does. `"litert"` (LiteRT
            with XNNPACK on x86-64) or `"tflm"` (TensorFlow Lite Micro's reference kernels): the
            model is converted to an int8 file, with LSTM layers as one operator where possible,
            which is computed with the integer arithmetic of that engine.
        calibration: Samples, one array for each input, to measure ranges that training did not
            learn; only with an engine.

    Returns:
        A Keras model, or an `EngineSimulation`.

    Raises:
        ArgumentError: the engine is unknown, or a range is known neither from training nor from
            calibration.
        ConversionError: the model cannot become an int8 file.
        UnsupportedModelError: the model is subclassed, or the engine's arithmetic of an operator is
            not known; the text names the operator and the layer.

    Example:
        >>> model.fit(x, y, callbacks=[QuantizationAwareTraining()])  # doctest: +SKIP
        >>> simulate(model).evaluate(x_test, y_test)  # doctest: +SKIP
        >>> simulate(model, engine="tflm").predict(x_test)  # doctest: +SKIP
    """
    if engine is None:
        from edgecompress.precisions import simulation

        if calibration is not None:
            raise ArgumentError("calibration", "be given only with an engine", "no engine")
        return simulation.simulate(model, record, quantizer)
    from edgecompress.converters import float32, int8
    from edgecompress.core.learnt_ranges import settled_record, valid_record
    from edgecompress.precisions.base import trained_precision
    from edgecompress.precisions.int8 import Int8
    from edgecompress.precisions.mixed import fuses_lstm
    from edgecompress.simulation.interpreter import require_engine

    require_engine(engine)
    record = valid_record(model, settled_record(model)) if record is None else record
    precision = quantizer or trained_precision(record) or Int8()
    artifact = int8.convert(
        # As `export` does unless told otherwise.
        float32.convert(float32.Trace(model, fused=fuses_lstm(precision, record))),
        record=record,
        calibration=calibration,
        precision=precision,
    )
    return EngineSimulation(artifact, engine)


__all__ = ["EngineSimulation", "simulate"]
