"""What compression bought: two versions of a Keras model, layer by layer."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.tables import Column, print_table
from edgecompress.costs import COSTS
from edgecompress.inspection.keras_models import keras_rows
from edgecompress.inspection.types import Row

# Costs that have fields of their own.
_COUNTED = ("macs", "parameters")


@dataclass(frozen=True)
class Count:
    """Something counted before and after; None where a layer is missing or shows no number.

    Attributes:
        before: In the first model.
        after: In the second model.
    """

    before: int | None
    after: int | None

    @property
    def ratio(self) -> float | None:
        """before / after; None without both or if nothing is left."""
        if self.before is None or not self.after:
            return None
        return self.before / self.after

    def __str__(self) -> str:
        """For tables: `before > after`."""
        shown = ["-" if value is None else f"{value:,}" for value in (self.before, self.after)]
        return shown[0] if self.before == self.after else " > ".join(shown)


@dataclass(frozen=True)
class LayerSavings:
    """One layer of both models.

    Attributes:
        name: Its name; `<nested model>/<layer>` if layers of nested models share it.
        type: Its class.
        channels: Output channels of its weights; 0 for a layer without filters.
        parameters: Everything learnt.
        nonzeros: Weights of filters and matrices that are not zero.
        macs: Multiply-accumulates of one inference.
        costs: Its part of each other cost that was asked for, by name, rounded: of `file_bytes` and
            `compressed_bytes` its weights and biases, of `arena` the outputs of its operators,
            which do not live together, of `latency` their typical time, in microseconds.
    """

    name: str
    type: str
    channels: Count
    parameters: Count
    nonzeros: Count
    macs: Count
    costs: Mapping[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Savings:
    """What compression bought: counts, and if a target is named, what files cost there.

    Attributes:
        layers: Every layer with weights or multiply-accumulates in one of the models, in the order
            of the first.
        parameters: Of the whole models.
        nonzeros: Of the whole models: what a file that is compressed has to hold.
        macs: Of the whole models. Zeros count: kernels multiply by them as by any number.
        costs: Each other cost that was asked for of the whole models, by name, rounded; that of
            `latency` is the upper end of the prediction.
        unknown: Cost -> why it is not known.
    """

    layers: tuple[LayerSavings, ...]
    parameters: Count
    nonzeros: Count
    macs: Count
    costs: Mapping[str, Count] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def alpha(self) -> float | None:
        """Compression: parameters before / after (Cheng et al., 2017, section IX)."""
        return self.parameters.ratio

    @property
    def delta(self) -> float | None:
        """Speed-up by multiply-accumulates: before / after. Latency on a device differs."""
        return self.macs.ratio

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self) | {"alpha": self.alpha, "delta": self.delta}

    def __str__(self) -> str:
        """A table of all layers that changed, and of the whole."""
        from rich.console import Console

        names = ("channels", "parameters", "nonzeros", "macs")
        more = tuple(self.costs)
        changed = [x for x in self.layers if any(_changes(count) for count in _counts(x))]
        rows = [(x.name, x.type, *(str(count) for count in _counts(x, more))) for x in changed]
        whole = [*(getattr(self, name) for name in names[1:]), *self.costs.values()]
        heads = ("channels", "parameters", "non-zeros", "MACs")
        units = [_heading(name) for name in more]
        columns = [Column(title, left=True) for title in ("layer", "type")]
        columns += [Column(title) for title in (*heads, *units)]
        text = io.StringIO()
        total = ("total", "", "", *map(str, whole))
        print_table(Console(file=text, force_terminal=False), columns, rows, total)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        ratios = [("alpha (parameters)", self.alpha), ("delta (MACs)", self.delta)]
        ratios += [(name, count.ratio) for name, count in self.costs.items()]
        lines.append(", ".join(f"{name} {x:.2f}" for name, x in ratios if x is not None))
        lines += [f"{name} is not known: {reason}" for name, reason in self.unknown.items()]
        return "\n".join(lines).strip("\n")


def savings(before: Any, after: Any, target: str | None = None) -> Savings:
    """Compares a Keras model with what compression made of it, layer by layer.

    Layers are matched by name, as `finalize` keeps them. Zeros in the weights of a layer count as
    fewer non-zeros, never as fewer multiply-accumulates: dense kernels do not skip them.

    Args:
        before: The model before compression.
        after: The model after it.
        target: Name of a target. Both models are then made into int8 files, on random inputs: their
            bytes, plain and compressed, and on a microcontroller the tensor arena and the predicted
            latency, where they are known. Defaults to None: counts only.

    Raises:
        ArgumentError: one of the two is not a Keras model, or not built.
        UnknownNameError: the target is unknown.

    Example:
        >>> print(savings(model, edgecompress.finalize(model)))  # doctest: +SKIP
        layer  type       channels  parameters  non-zeros       MACs
        conv   Conv2D       16 > 8    160 > 80   144 > 72   97,344 > 48,672
        ...
        alpha (parameters) 2.31, delta (MACs) 2.05
    """
    for name, model in (("before", before), ("after", after)):
        if not hasattr(model, "layers"):
            rule = "be a Keras model"
            raise ArgumentError(name, rule, model, "edgecompress.load_model reads files.")
        if not model.built:
            hint = "Start it with keras.Input(shape) or call it once on data."
            raise ArgumentError(name, "be built", model, hint)
    if target is not None and not isinstance(target, str):
        raise ArgumentError("target", "be the name of a target", target)
    found = [_rows(model) for model in (before, after)]
    paths = list(dict.fromkeys([*found[0], *found[1]]))
    last = Counter(path.rpartition("/")[2] for path in paths)
    names = {path: name if last[name := path.rpartition("/")[2]] == 1 else path for path in paths}
    costs, parts, unknown = _costs(before, after, target)
    layers = tuple(
        _layer(names[path], found[0].get(path), found[1].get(path), parts.get(path, {}))
        for path in paths
    )
    parameters, nonzeros, macs = (
        Count(*(_total(rows, key) for rows in found)) for key in ("parameters", "nonzeros", "macs")
    )
    shown = tuple(
        layer
        for layer in layers
        if any((count.before or count.after) for count in (layer.parameters, layer.macs))
    )
    return Savings(shown, parameters, nonzeros, macs, costs, unknown)


def _costs(
    before: Any, after: Any, target: str | None
) -> tuple[dict[str, Count], dict[str, dict[str, Count]], dict[str, str]]:
    """Returns the costs of the whole models, those of layers by layer, and why some are unknown."""
    costs: dict[str, Count] = {}
    parts: dict[str, dict[str, Count]] = {}
    unknown: dict[str, str] = {}
    for name, cost in COSTS.items() if target is not None else ():
        if name in _COUNTED:
            continue
        reason = cost.check_target(str(target)) if cost.needs_target else None
        if reason is None:
            try:
                costs[name] = _both(cost.measure, before, after, target)
                by_layer = [cost.by_layer(model, target) for model in (before, after)]
            except EdgeCompressError as error:
                reason = str(error)
        if reason is not None:
            unknown[name] = reason
            continue
        for path in {**by_layer[0], **by_layer[1]}:
            pair = [own.get(path) for own in by_layer]
            rounded = [None if value is None else round(value) for value in pair]
            parts.setdefault(path, {})[name] = Count(*rounded)
    return costs, parts, unknown


def _both(measure: Any, before: Any, after: Any, target: str | None) -> Count:
    return Count(*(round(measure(model, target)) for model in (before, after)))


def _counts(layer: LayerSavings, more: Iterable[str] = ()) -> list[Count]:
    counts = [layer.channels, layer.parameters, layer.nonzeros, layer.macs]
    return [*counts, *(layer.costs.get(name, Count(None, None)) for name in more)]


def _heading(name: str) -> str:
    unit = COSTS[name].unit
    return name if name.endswith(unit) else f"{name} ({unit})"


def _rows(model: Any) -> dict[str, Row]:
    return dict(keras_rows(model, []))


def _of(row: Row, key: str) -> int | None:
    if key == "nonzeros":
        return None if row.zeros is None else row.weights - row.zeros
    value: int | None = getattr(row, key)
    return value


def _total(rows: dict[str, Row], key: str) -> int | None:
    values = [_of(row, key) for row in rows.values()]
    return None if None in values else sum(value for value in values if value is not None)


def _layer(
    name: str, before: Row | None, after: Row | None, costs: Mapping[str, Count]
) -> LayerSavings:
    known = before or after
    counts = {
        field: Count(*(None if row is None else _of(row, key) for row in (before, after)))
        for field, key in (
            ("channels", "filters"),
            ("parameters", "parameters"),
            ("nonzeros", "nonzeros"),
            ("macs", "macs"),
        )
    }
    return LayerSavings(name, "" if known is None else known.type, **counts, costs=costs)


def _changes(count: Count) -> bool:
    return count.before != count.after
