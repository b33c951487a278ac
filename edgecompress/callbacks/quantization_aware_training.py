"""Quantization-aware training: the model trains under the rounding of its int8 file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.callbacks import backends
from edgecompress.callbacks.base import DIVERGED, CompressionCallback
from edgecompress.callbacks.hooks import Hook, HookSession
from edgecompress.callbacks.layer_choice import LayerChoice, layer_choice, select_layers
from edgecompress.callbacks.quantized_arithmetic import QuantizedArithmetic
from edgecompress.core.arguments import check_whole
from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.core.finite import check_ranges, check_weights
from edgecompress.core.fusion import FusedGraph, analyse, layer_of_use
from edgecompress.core.inner_kernels import inner_kernels
from edgecompress.core.keras_graph import layers_by_name
from edgecompress.core.learnt_ranges import (
    changed_layers,
    forget,
    ranges_of_epoch,
    remember,
    settled_record,
)
from edgecompress.core.options import named_config
from edgecompress.core.record import attach_record, before_save
from edgecompress.precisions.base import PRECISIONS, QAT, Precision
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.mixed import (
    assign,
    check_mix,
    fused_cells,
    kernels_step,
    mix_config,
    places_of,
)
from edgecompress.precisions.requantization import REQUANTIZATIONS


class QuantizationAwareTraining(CompressionCallback):
    """Trains under int8 arithmetic, so that the exported int8 file predicts what training saw.

    Every kernel is read through `round(w / s_c) * s_c` with per-channel scales, or a single one if
    its weights share few values (WeightClustering, in this fit or before); every activation that
    the int8 file rounds is rounded with a range learnt as a moving average; the gradient is
    straight-through. Conv + BatchNormalization + ReLU count as the single operator they are fused
    into: rounding the unfolded kernel gives the codes of the folded one, as folding scales whole
    channels. The model stays float and plain: no wrappers, no extra weights, and after training
    only the ranges in its CompressionRecord remain.

    Validation inside `fit` sees the rounding as soon as it is active. An output that is a softmax
    or a sigmoid is not rounded during training, as a loss needs its small probabilities; `simulate`
    rounds it. A second `fit` continues the ranges of the first if the weights are unchanged since
    its end. After BackupAndRestore they start at the first batch's range, which the restored
    weights already fit. If EarlyStopping restores an earlier epoch's weights, the ranges are that
    epoch's. An interrupted fit (Ctrl-C) leaves the model under int8 arithmetic until the next fit
    with this callback or until `detach()`; saving and exporting are not affected.

    History: `quantization_active` (0 or 1) and `quantization_drift`, the largest change of a range
    in the epoch as a share of its width (0 once settled).

    Args:
        settings: The precision, of a class in `PRECISIONS`. Defaults to `Int8()`.
        begin_epoch: Epoch, as Keras counts them (from 0, or from `initial_epoch`), in which the
            rounding begins; earlier epochs train in float. Defaults to 0.
        freeze_batch_norm_epochs: For how many of the last epochs BatchNormalization layers that
            fold into a convolution use their moving statistics, as the file will. Defaults to 0;
            measured to bring nothing at 8 bits.
        per_layer: Regular expression -> precision of the weights of layers whose whole name it
            matches, e.g. `{"conv.*": Int4()}`; the first that does counts. Defaults to none. The
            record keeps it, so that the file follows training.
        engine: Whose integer arithmetic validation follows: `"litert"` or `"tflm"`. Training is
            the same. Defaults to LiteRT's.
        layers: Names of the layers whose weights are rounded, or a predicate `layer -> bool`, or
            None for all that int8 supports. Activations are rounded everywhere. Defaults to None.

    Raises:
        ArgumentError: an argument breaks its rule.
        UnsupportedModelError: when training begins, if the model is subclassed, uses a layer
            twice, or has no layer that int8 supports.
        NotFiniteError: in training, if a weight or a range becomes NaN or infinite.

    Example:
        >>> model.fit(x, y, epochs=10, callbacks=[QuantizationAwareTraining(begin_epoch=7)])
        ...  # doctest: +SKIP
        >>> record_of(model).ranges["re_lu"]  # doctest: +SKIP
        (0.0, 4.73)

    Jacob et al., https://arxiv.org/abs/1712.05877, section 3. Differences: weights have per-channel
    scales, BatchNormalization is not folded during training, and ranges start at the first batch's
    instead of after a delay.
    """

    technique = QAT

    def __init__(
        self,
        settings: Precision | None = None,
        begin_epoch: int = 0,
        freeze_batch_norm_epochs: int = 0,
        layers: LayerChoice = None,
        per_layer: Mapping[str, Precision] | None = None,
        engine: str = "litert",
    ) -> None:
        """Checks the arguments."""
        super().__init__()
        settings = Int8() if settings is None else settings
        if type(settings) not in PRECISIONS.values():
            kinds = ", ".join(kind.__name__ for kind in PRECISIONS.values() if kind.trains)
            raise ArgumentError("settings", f"be an {kinds}", settings, "Use settings=Int8().")
        if not settings.trains:
            raise ArgumentError(
                "settings",
                "be a precision with rounded activations, which training simulates",
                settings.name,
                f"Train in float and export with --precision {settings.name}.",
            )
        for name, value in (
            ("begin_epoch", begin_epoch),
            ("freeze_batch_norm_epochs", freeze_batch_norm_epochs),
        ):
            check_whole(name, value)
        if engine not in REQUANTIZATIONS:
            raise ArgumentError("engine", f"be {' or '.join(REQUANTIZATIONS)}", engine)
        self._engine = engine
        self.quantizer = settings
        self.begin_epoch = begin_epoch
        self.freeze_batch_norm_epochs = freeze_batch_norm_epochs
        self.layers = layer_choice(layers)
        self.per_layer = dict(per_layer or {})
        check_mix(settings, self.per_layer)
        self._kernels: dict[str, Precision] = {}
        self._graph: FusedGraph | None = None
        self._chosen: tuple[str, ...] = ()
        self._arithmetic: QuantizedArithmetic | None = None
        self._active_epochs = 0
        self._before: dict[str, tuple[float, float]] = {}
        self._new_epoch = False

    @property
    def engine(self) -> str:
        """The engine that validation follows; may be set during training."""
        return self._engine

    @engine.setter
    def engine(self, name: str) -> None:
        self._engine = name
        if self._arithmetic is not None:
            self._arithmetic.engine = REQUANTIZATIONS[name]
            backends.current().retrace_inference(self.model)

    @property
    def active(self) -> bool:
        """Whether the model is currently trained under int8 arithmetic."""
        return self._session is not None and any(h.owner is self for h in self._session.hooks)

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values."""
        return {
            "quantizer": self.quantizer.name,
            "weight_bits": self.quantizer.weight_bits,
            "activation_bits": self.quantizer.activation_bits,
            **named_config(PRECISIONS, self.quantizer)["config"],
            **({"per_layer": mix_config(self.per_layer)} if self.per_layer else {}),
            "begin_epoch": self.begin_epoch,
            "freeze_batch_norm_epochs": self.freeze_batch_norm_epochs,
        }

    def attach(self) -> None:
        """Finds taps and weights; refuses models that int8 cannot take."""
        self._active_epochs = 0
        self._graph = analyse(self.model)
        self._choose(self._graph)
        fused = fused_cells(self.model, self._graph, self.quantizer, self._kernels)
        unrolled = [] if fused else self._graph.unrolled_notes()
        for text in (*self._graph.notes, *unrolled):
            self.note(text)

    def _choose(self, graph: FusedGraph) -> None:
        by_name = layers_by_name(self.model)
        followed = {layer_of_use(use) for use in graph.composites}
        weighted = [
            name for name in by_name if name in graph.weights
            or (name in followed and inner_kernels(by_name[name]))
        ]  # fmt: skip
        known = {id(by_name[name]) for name in weighted}
        if not known:
            raise UnsupportedModelError(
                f"Model {self.model.name!r} has no layer whose weights int8 quantization knows "
                "(Dense, EinsumDense, Conv, ConvTranspose, DepthwiseConv, SeparableConv, "
                "MultiHeadAttention)."
            )
        kinds = tuple({type(by_name[name]) for name in weighted})
        chosen = select_layers(self.model, self.layers, kinds)
        self._chosen = tuple(layer.name for layer in chosen if id(layer) in known)
        self._kernels = assign(places_of(self.model, graph), self.quantizer, self.per_layer)
        for name in weighted:
            if name not in self._chosen:
                self.note(
                    f"not simulated: {name} ({type(by_name[name]).__name__}): `layers` leaves its "
                    "weights out; the int8 file rounds them all the same."
                )

    def start_epoch(self, epoch: int) -> None:
        """Begins at the chosen epoch; freezes BatchNormalization at the end."""
        if self._arithmetic is None:
            if epoch < self.begin_epoch or self._graph is None:
                return
            self._arithmetic = self._begin(self._graph)
        arithmetic = self._arithmetic
        last = self.params.get("epochs", 0) - self.freeze_batch_norm_epochs
        if self.freeze_batch_norm_epochs and epoch >= last and not arithmetic.batch_norm_frozen:
            arithmetic.batch_norm_frozen = True
            self.session.trace(always=True)
        self._before = arithmetic.ranges()
        self._new_epoch = True

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Chooses the scales of the kernels again in each epoch, after all callbacks began it."""
        if self._new_epoch and self._arithmetic is not None:
            self._new_epoch = False
            if self._arithmetic.kernels.choose_scales():
                self.session.trace(always=True)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops training when a NaN weight or range has made the loss NaN."""
        if self._arithmetic is not None and not self._arithmetic.seen:
            backends.current().sync(self.model)
            if self._arithmetic.observe():
                backends.current().retrace_inference(self.model)
        loss = (logs or {}).get("loss", 0.0)
        if self._arithmetic is not None and not np.isfinite(loss):
            backends.current().sync(self.model)
            self._check_finite(self._arithmetic.ranges())

    def _check_finite(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        with self._stage():
            check_weights(self.model, DIVERGED)
            check_ranges(ranges, DIVERGED)

    def _begin(self, graph: FusedGraph) -> QuantizedArithmetic:
        if any(
            isinstance(hook.owner, QuantizationAwareTraining) and hook.owner is not self
            for hook in self.session.hooks
        ):
            raise ArgumentError(
                "callbacks",
                "hold one QuantizationAwareTraining",
                "two",
                "Remove one; its `layers` can name several layers.",
            )
        # Training in between without this callback has moved the activations away from the ranges.
        record = settled_record(self.model)
        changed = bool(changed_layers(self.model, record))
        ranges, scales = ({}, {}) if changed else (record.ranges, record.weight_scales)
        forget(self.model)
        arithmetic = QuantizedArithmetic(
            self.model, graph, self.quantizer, self._chosen, ranges, self._kernels, scales
        )
        arithmetic.engine = REQUANTIZATIONS[self._engine]
        for hook in arithmetic.hooks():
            self.hook(hook)
        arithmetic.prepare()
        self.hook(_RecordKeeping(self._update_record))
        attach_record(self.model, record)
        return arithmetic

    def _update_record(self) -> None:
        # A checkpoint may be written before or after this callback's `on_epoch_end`.
        if self._arithmetic is not None and (ranges := self._arithmetic.ranges()):
            self._attach_ranges(ranges, self._arithmetic)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs and keeps the ranges in the record, so that checkpoints carry them."""
        drift = 0.0
        if self._arithmetic is not None:
            self._active_epochs += 1
            ranges = self._arithmetic.ranges()
            self._check_finite(ranges)
            drift = _drift(self._before, ranges)
            self._attach_ranges(ranges, self._arithmetic)
            remember(self.model, ranges, self._arithmetic.kernels.weight_scales())
        active = float(self._arithmetic is not None)
        self.log(epoch, logs, {"quantization_active": active, "quantization_drift": drift})

    def _attach_ranges(
        self, ranges: Mapping[str, tuple[float, float]], arithmetic: QuantizedArithmetic
    ) -> None:
        outcome = self._outcome(ranges, arithmetic.kernels.one_scale)
        self.attach_step(outcome, ranges, arithmetic.kernels.weight_scales())

    def _outcome(
        self, ranges: Mapping[str, tuple[float, float]], one_scale: Sequence[str]
    ) -> dict[str, Any]:
        return {
            "epochs": self._active_epochs,
            "layers": list(self._chosen),
            "taps": len(ranges),
            "one_scale": list(one_scale),
            **kernels_step(self._kernels),
        }

    def settle(self) -> None:
        """Notes if the rounding never began."""
        if self._arithmetic is None:
            self.note(
                f"QuantizationAwareTraining was never active: begin_epoch is {self.begin_epoch}, "
                f"training ended after epoch {self.params.get('epochs', 0) - 1}."
            )

    def learnt_ranges(self) -> Mapping[str, tuple[float, float]]:
        """Returns the ranges that belong to the current weights."""
        if self._arithmetic is None:
            return {}
        # Early stopping may already have restored the weights of an earlier epoch, or may do so
        # later.
        found = ranges_of_epoch(self.model)
        return self._arithmetic.ranges() if found is None else found[0]

    def learnt_scales(self) -> Mapping[str, Sequence[float]]:
        """Returns the scales of kernels that belong to the current weights."""
        if self._arithmetic is None:
            return {}
        found = ranges_of_epoch(self.model)
        return self._arithmetic.kernels.weight_scales() if found is None else found[1]

    def results(self) -> Mapping[str, Any]:
        """Returns the epochs, the layers, the number of ranges, and the kernels with one scale."""
        active = self._arithmetic
        return self._outcome(
            self.learnt_ranges(), () if active is None else active.kernels.one_scale
        )

    def detach(self) -> None:
        """Makes the model compute in float again; `fit` does so unless interrupted."""
        super().detach()
        self._arithmetic = None


class _RecordKeeping(Hook):
    """Brings the record up to date before the model is saved in the middle of a fit."""

    def __init__(self, update: Callable[[], None]) -> None:
        self._update = update

    def attach(self, session: HookSession) -> None:
        """Makes `save` use the current ranges."""
        before_save(session.model, self._update)

    def detach(self, session: HookSession) -> None:
        """Makes `save` use the ranges that belong to the weights, which may still be restored."""
        model = session.model
        before_save(model, lambda: attach_record(model, settled_record(model)))


def _drift(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> float:
    """Returns the largest change of a range's end as a share of its width.

    A range without earlier data counts as 1.
    """
    largest = 0.0
    for tap, (low, high) in after.items():
        if tap not in before:
            largest = 1.0
            continue
        width = max(high - low, 1e-9)
        moved = max(abs(low - before[tap][0]), abs(high - before[tap][1]))
        largest = max(largest, moved / width)
    return largest
