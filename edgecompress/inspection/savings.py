"""What compression bought: two versions of a Keras model, layer by layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.inspection.keras_models import inspect_keras
from edgecompress.inspection.types import Row


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
        name: Its name.
        type: Its class.
        channels: Output channels of its weights; 0 for a layer without filters.
        parameters: Everything learnt.
        nonzeros: Weights of filters and matrices that are not zero.
        macs: Multiply-accumulates of one inference.
    """

    name: str
    type: str
    channels: Count
    parameters: Count
    nonzeros: Count
    macs: Count


@dataclass(frozen=True)
class Savings:
    """What compression bought, in counts that do not depend on a device.

    Attributes:
        layers: Every layer with weights or multiply-accumulates in one of the models, in the order
            of the first.
        parameters: Of the whole models.
        nonzeros: Of the whole models: what a file that is compressed has to hold.
        macs: Of the whole models. Zeros count: kernels multiply by them as by any number.
    """

    layers: tuple[LayerSavings, ...]
    parameters: Count
    nonzeros: Count
    macs: Count

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
        names = ("channels", "parameters", "nonzeros", "macs")
        changed = [x for x in self.layers if any(_changes(getattr(x, name)) for name in names)]
        rows = [(x.name, x.type, *(str(getattr(x, name)) for name in names)) for x in changed]
        total = ("total", "", "", *(str(getattr(self, name)) for name in names[1:]))
        head = ("layer", "type", "channels", "parameters", "non-zeros", "MACs")
        lines = [head, *rows, total]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        ratios = [
            f"{name} {ratio:.2f}"
            for name, ratio in (("alpha (parameters)", self.alpha), ("delta (MACs)", self.delta))
            if ratio is not None
        ]
        return "\n".join([*text, ", ".join(ratios)]).rstrip()


def savings(before: Any, after: Any) -> Savings:
    """Compares a Keras model with what compression made of it, layer by layer.

    Layers are matched by name, as `finalize` keeps them. Zeros in the weights of a layer count as
    fewer non-zeros, never as fewer multiply-accumulates: dense kernels do not skip them.

    Args:
        before: The model before compression.
        after: The model after it.

    Raises:
        ArgumentError: one of the two is not a Keras model.

    Example:
        >>> print(savings(model, edgecompress.finalize(model)))  # doctest: +SKIP
        layer  type       channels  parameters  non-zeros       MACs
        conv   Conv2D       16 > 8   160 > 80   144 > 72   97,344 > 48,672
        ...
        alpha (parameters) 2.31, delta (MACs) 2.05
    """
    for name, model in (("before", before), ("after", after)):
        if not hasattr(model, "layers"):
            rule = "be a Keras model"
            raise ArgumentError(name, rule, model, "edgecompress.load_model reads files.")
    found = [_rows(model) for model in (before, after)]
    names = list(dict.fromkeys([*found[0], *found[1]]))
    layers = tuple(_layer(name, found[0].get(name), found[1].get(name)) for name in names)
    return Savings(
        tuple(
            layer
            for layer in layers
            if any((count.before or count.after) for count in (layer.parameters, layer.macs))
        ),
        *(
            Count(*(_total(rows, key) for rows in found))
            for key in ("parameters", "nonzeros", "macs")
        ),
    )


def _rows(model: Any) -> dict[str, Row]:
    return {row.name: row for row in inspect_keras(model).rows}


def _of(row: Row, key: str) -> int | None:
    if key == "nonzeros":
        return None if row.zeros is None else row.weights - row.zeros
    value: int | None = getattr(row, key)
    return value


def _total(rows: dict[str, Row], key: str) -> int | None:
    values = [_of(row, key) for row in rows.values()]
    return None if None in values else sum(value for value in values if value is not None)


def _layer(name: str, before: Row | None, after: Row | None) -> LayerSavings:
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
    return LayerSavings(name, "" if known is None else known.type, **counts)


def _changes(count: Count) -> bool:
    return count.before != count.after
