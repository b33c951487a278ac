"""Training in fixed point: weights are numbers of few bits after every update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks import backends
from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.layer_choice import LayerChoice, choose_kernels, layer_choice
from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.fixed_point import fixed_point

_ROUNDINGS = ("stochastic", "nearest")


class FixedPointTraining(CompressionCallback):
    """Trains kernels and biases that are fixed-point numbers all the time, without a float copy.

    After every update, each weight of the chosen layers is rounded to a multiple of
    `2 ** -fraction_bits` that fits `word_bits` bits; what is larger saturates. Rounding to the
    nearest loses every update below half a step, and training stalls. Stochastic rounding keeps
    them on average: a weight goes to the upper neighbour with a probability equal to its distance
    from the lower one (Gupta et al., Deep Learning with Limited Numerical Precision, 2015,
    https://arxiv.org/abs/1502.02551, section 3). Activations and gradients stay in float, unlike
    in the paper: QuantizationAwareTraining in the same fit rounds activations.

    `Int8(weight_ranges="power-of-two")` stores weights of at most 8 bits exactly, as long as the
    smallest code, -128, does not occur.

    The history gains `fixed_point_saturated`, the share of weights at an end of the range. **Keep
    the callback in every later `fit`**: without it, weights leave the grid.

    Args:
        word_bits: Bits of a number with its sign, 2 to 24. Defaults to 16.
        fraction_bits: Bits behind the point. Defaults to 12, so that 16 bits reach from -8 to 8.
        rounding: `"stochastic"` or `"nearest"`. Defaults to `"stochastic"`.
        layers: Names of the layers, or a predicate `layer -> bool`. Defaults to None: all layers
            with kernels but depthwise ones.
        begin_epoch: Epoch, as Keras counts them, in which it begins. Defaults to 0.
        seed: Of stochastic rounding. Defaults to 0.

    Raises:
        ArgumentError: an argument breaks its rule; when training begins also if no layer is left,
            or another callback of the fit sets the same weights.
        UnknownNameError: a layer is unknown.
        UnsupportedModelError: when training begins, the model is subclassed.

    Example:
        >>> model.fit(x, y, callbacks=[FixedPointTraining(8, 6)])  # doctest: +SKIP
        >>> float(np.abs(model.layers[0].kernel).min() * 2**6 % 1)  # doctest: +SKIP
        0.0
    """

    technique = "fixed_point_training"

    def __init__(
        self,
        word_bits: int = 16,
        fraction_bits: int = 12,
        rounding: str = "stochastic",
        layers: LayerChoice = None,
        begin_epoch: int = 0,
        seed: int = 0,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__()
        # float32 holds whole numbers up to 24 bits.
        for name, value, low, high in (
            ("word_bits", word_bits, 2, 24),
            ("fraction_bits", fraction_bits, -32, 32),
            ("begin_epoch", begin_epoch, 0, 2**31),
            ("seed", seed, 0, 2**31 - 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ArgumentError(name, f"be a whole number from {low} to {high}", value)
        if rounding not in _ROUNDINGS:
            raise ArgumentError("rounding", f"be {' or '.join(_ROUNDINGS)}", rounding)
        self.word_bits, self.fraction_bits, self.rounding = word_bits, fraction_bits, rounding
        self.layers = layer_choice(layers)
        self.begin_epoch, self.seed = begin_epoch, seed
        self._names: list[str] = []
        self._weights: list[keras.Variable] = []
        self._updates: keras.Variable | None = None

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {
            "word_bits": self.word_bits,
            "fraction_bits": self.fraction_bits,
            "rounding": self.rounding,
            "layers": self._names,
            "begin_epoch": self.begin_epoch,
            "seed": self.seed,
        }

    def attach(self) -> None:
        """Chooses the weights; refuses what cannot be trained so."""
        chosen = choose_kernels(self.model, self.layers, "rounded to fixed point", self.note)
        found: dict[int, keras.Variable] = {}
        for kernel in chosen:
            bias = getattr(kernel.layer, "bias", None)
            for variable in (kernel.variable, bias):
                if variable is not None:
                    found[id(variable)] = variable
        self._names = list(dict.fromkeys(kernel.name for kernel in chosen))
        self._weights = list(found.values())
        self._updates = None

    def start_epoch(self, epoch: int) -> None:
        """Begins at the chosen epoch."""
        if self._updates is None and epoch >= self.begin_epoch:
            hook = self.hook(UpdateHook(self._round, assigns=self._weights, exclusive=True))
            self._updates = hook.add_variable((), "int32", "fixed_point_updates")
            self._settle_on_grid()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the share of saturated weights into the history."""
        self.log(epoch, logs, {"fixed_point_saturated": self._saturated()})

    def settle(self) -> None:
        """Rounds weights that were replaced at the end: restored or averaged ones."""
        if self._updates is None:
            self.note(
                f"FixedPointTraining was never active: begin_epoch is {self.begin_epoch}, training "
                f"ended after epoch {self.params.get('epochs', 0) - 1}."
            )
            return
        self._settle_on_grid()

    def results(self) -> Mapping[str, Any]:
        """Returns the share of saturated weights."""
        return {"saturated": self._saturated()}

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        super().detach()
        self._weights, self._updates = [], None

    def _settle_on_grid(self) -> None:
        for weights in self._weights:
            values = ops.cast(weights, "float32")
            weights.assign(fixed_point(values, self.word_bits, self.fraction_bits))

    def _round(self) -> None:
        """Rounds all weights after an update; part of the compiled step."""
        # Every replica and every retrace must draw the same numbers, from a counter.
        count = ops.convert_to_tensor(self._updates)
        for index, weights in enumerate(self._weights):
            chance: Any = 0.5
            if self.rounding == "stochastic":
                chance = backends.current().uniform(weights.shape, self.seed, index, count)
            values = ops.cast(weights, "float32")
            rounded = fixed_point(values, self.word_bits, self.fraction_bits, chance)
            weights.assign(ops.cast(rounded, weights.dtype))
        self._updates.assign_add(1)  # type: ignore[union-attr]

    def _saturated(self) -> float:
        limit = 2 ** (self.word_bits - 1)
        ends = np.array([-limit, limit - 1]) / 2.0**self.fraction_bits
        weights = [ops.convert_to_numpy(ops.cast(w, "float32")) for w in self._weights]
        total = sum(w.size for w in weights)
        return float(sum(np.isin(w, ends).sum() for w in weights) / total) if total else 0.0
