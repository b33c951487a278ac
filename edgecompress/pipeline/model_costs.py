"""The costs that a budget can limit; reading `costs.COSTS` imports this module.

Those of a file and of a target are found by making the int8 file (`trial_file`) and asking the
target's family about it, as a check of the exported file does.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.errors import ConversionError
from edgecompress.core.units import format_size, format_time, parse_size, parse_time
from edgecompress.costs import Cost, cost
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.inspection.costs import Macs as Macs
from edgecompress.inspection.costs import Parameters as Parameters
from edgecompress.pipeline.trial_file import TrialFile, trial_file
from edgecompress.targets.checks import check
from edgecompress.targets.family import Family, family_of
from edgecompress.targets.profile import TargetProfile, load_target

if TYPE_CHECKING:
    import numpy as np


class _Bytes(Cost):
    """A cost in bytes."""

    unit: ClassVar[str] = "bytes"

    def parse(self, value: Any, argument: str) -> float:
        """Returns bytes; see `Cost.parse`."""
        return (
            parse_size(value, argument)
            if isinstance(value, str)
            else super().parse(value, argument)
        )

    def show(self, value: float) -> str:
        """Returns a size with its unit; see `Cost.show`."""
        return (
            f"{value:,.0f} bytes ({format_size(value)})" if value >= 1024 else f"{value:,.0f} bytes"
        )


@cost("file_bytes")
class FileBytes(_Bytes):
    """Size of the int8 file."""

    def measure(self, model: Any, target: str | None = None) -> float:
        """Returns the size of the file that `export` makes; see `Cost.measure`."""
        return len(trial_file(model, target).artifact.data)

    def by_layer(self, model: Any, target: str | None = None) -> Mapping[str, float]:
        """Returns the bytes of the weights and biases of each layer; see `Cost.by_layer`."""
        return _learnt(trial_file(model, target), lambda tensor: tensor.bytes)


@cost("compressed_bytes")
class CompressedBytes(_Bytes):
    """Size of the int8 file once it is compressed (DEFLATE), as for a download."""

    of_values: ClassVar[bool] = True

    def measure(self, model: Any, target: str | None = None) -> float:
        """Returns the compressed size of the file; see `Cost.measure`."""
        return trial_file(model, target, filled=False).artifact.compressed_bytes

    def by_layer(self, model: Any, target: str | None = None) -> Mapping[str, float]:
        """Returns the weights and biases of each layer, each compressed; see `Cost.by_layer`."""
        trial = trial_file(model, target, filled=False)
        return _learnt(trial, lambda tensor: len(zlib.compress(tensor.raw or b"", 9)))


class _OfTarget(Cost):
    """A cost that a rule of the checks judges on a microcontroller."""

    needs_target: ClassVar[bool] = True
    rule: ClassVar[str] = ""

    def check_target(self, target: str) -> str | None:
        """Returns why the target's family does not compute it; see `Cost.check_target`."""
        family, profile = _family(target)
        if not family.has_arena:
            return f"It is computed for microcontrollers; {profile.title} is {family.title}."
        return None

    def multiple(self, target: str) -> int:
        """Returns how many channels the target's kernels compute together; see `Cost.multiple`."""
        family, profile = _family(target)
        return family.width_multiple(profile, family.settle(profile, {}))

    def checked(self, model: Any, target: str | None) -> float:
        """Returns what the rule compares with a limit.

        Raises:
            ConversionError: it found nothing, for the reason given.
        """
        family, profile = _family(str(target))
        flat = trial_file(model, target).artifact.flat
        found = next(x for x in check(flat, profile).checks if x.rule == self.rule)
        if found.largest is None:
            raise ConversionError(
                f"The {self.rule} on {profile.name} is not known: {found.reason or 'no rule'}"
            )
        return found.largest


@cost("arena")
class ArenaBytes(_Bytes, _OfTarget):
    """Bytes of the tensor arena, as computed for a microcontroller."""

    rule: ClassVar[str] = "arena"

    def measure(self, model: Any, target: str | None = None) -> float:
        """Returns the smallest arena that suffices; see `Cost.measure`."""
        return self.checked(model, target)

    def by_layer(self, model: Any, target: str | None = None) -> Mapping[str, float]:
        """Returns the bytes of each layer's outputs, which do not live together."""
        trial, found = trial_file(model, target), Counter[str]()
        flat = trial.artifact.flat
        for path, operator in zip(trial.layers, flat.operators, strict=True):
            found[path or ""] += sum(flat.tensors[i].bytes for i in operator.outputs)
        return {path: value for path, value in found.items() if path}

    def left_over(
        self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], outputs: float
    ) -> float:
        """Returns the share of the outputs; see `Cost.left_over`."""
        return outputs


@cost("latency")
class Latency(_OfTarget):
    """Predicted time of one inference on a microcontroller, the upper end of its band."""

    unit: ClassVar[str] = "microseconds"
    rule: ClassVar[str] = "latency"

    def measure(self, model: Any, target: str | None = None) -> float:
        """Returns the upper end of the band; see `Cost.measure`."""
        return self.checked(model, target)

    def by_layer(self, model: Any, target: str | None = None) -> Mapping[str, float]:
        """Returns the typical times of each layer's operators; see `Cost.by_layer`."""
        trial = trial_file(model, target)
        found: dict[str, float] = defaultdict(float)
        for path, time in zip(trial.layers, _times(trial, str(target)), strict=False):
            found[path or ""] += time
        return {path: value for path, value in found.items() if path and value}

    def check_target(self, target: str) -> str | None:
        """Returns why there is no prediction; see `Cost.check_target`."""
        profile = _family(target)[1]
        reason = super().check_target(target)
        if reason is None and profile.clock_mhz is None:
            reason = f"{profile.name} is a bare core without a clock: name a board."
        return reason

    def parse(self, value: Any, argument: str) -> float:
        """Returns microseconds; see `Cost.parse`."""
        if isinstance(value, str):
            return math.floor(parse_time(value, argument)) or 1
        return super().parse(value, argument)

    def show(self, value: float) -> str:
        """Returns a time with its unit; see `Cost.show`."""
        return format_time(value)


def _times(trial: TrialFile, target: str) -> list[float]:
    family, profile = _family(target)
    flat: FlatModel = trial.artifact.flat
    return [time for _, time in family.operator_times(flat, profile, family.settle(profile, {}))]


def _family(target: str) -> tuple[Family, TargetProfile]:
    profile = load_target(target)
    return family_of(profile), profile


def _learnt(trial: TrialFile, size: Callable[[Tensor], int]) -> dict[str, float]:
    """Returns the size of the learnt tensors of each layer's operators."""
    flat, owned = trial.artifact.flat, defaultdict[str, set[int]](set)
    learnt = {tensor.index: tensor for tensor in flat.weight_tensors()}
    for path, operator in zip(trial.layers, flat.operators, strict=True):
        if path is not None:
            # The uses of a shared layer read one kernel.
            owned[path].update(learnt.keys() & operator.inputs)
    return {path: sum(size(learnt[i]) for i in own) for path, own in owned.items() if own}
