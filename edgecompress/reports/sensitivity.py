"""The damage of each layer, and the layers to keep, as the rows of two tables."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.core.errors import few
from edgecompress.core.sensitivity import KeptLayers, LayerDamage, Sensitivity
from edgecompress.reports.words import format_value

_UNKNOWN = "unknown"


def damage_columns(found: Sensitivity) -> list[str]:
    """Returns the headings of the table of layers."""
    return ["Layer", "Operators", "Outputs", *([found.metric] if found.metric else [])]


def damage_rows(found: Sensitivity) -> list[list[str]]:
    """Returns the table of layers, the most damaging first."""
    return [_damage(found, layer) for layer in found.layers]


def _damage(found: Sensitivity, layer: LayerDamage) -> list[str]:
    ratio = "exact" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB"
    if layer.problem is not None:
        ratio = f"not measured: {layer.problem}"
    score = [format_value(layer.score, found.unit)] if found.metric else []
    return [layer.layer, ", ".join(layer.operators), ratio, *score]


def choice_columns(found: Sensitivity) -> list[str]:
    """Returns the headings of the table of files with layers kept."""
    metric = [found.metric, "Limit"] if found.metric else []
    return ["Kept", "Layers", *metric, "File", "Arena", "Latency"]


def choice_rows(found: Sensitivity) -> list[list[str]]:
    """Returns the table of files with layers kept, the exported file first."""
    return [_choice(found, choice) for choice in (found.base, *found.choices)]


def _choice(found: Sensitivity, choice: KeptLayers) -> list[str]:
    verdict = {None: "", True: "reached", False: "missed"}[choice.reached]
    score = [format_value(choice.score, found.unit), verdict] if found.metric else []
    return [
        f"in {choice.how}{', cheapest' if choice.cheapest else ''}" if choice.how else "none",
        few(list(choice.layers), 6) if choice.layers else "",
        *score,
        format_value(choice.file_bytes, "bytes"),
        format_value(choice.arena_bytes, "bytes") or _UNKNOWN,
        format_value(choice.microseconds, "microseconds") or _UNKNOWN,
    ]


def command_of(choice: KeptLayers) -> Sequence[str]:
    """Returns the options of `export` that keep these layers.

    Example:
        >>> command_of(KeptLayers("int16", ("head",), 0.9, True, 100))
        ('--keep-int16', 'head')
    """
    import re

    flag = {"int16": "--keep-int16", "float": "--keep-float"}[choice.how]
    return tuple(part for layer in choice.layers for part in (flag, re.escape(layer)))
