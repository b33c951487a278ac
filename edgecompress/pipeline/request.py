"""What a user asks for, checked before any long work: targets, budgets, folder, labelled data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.files import sweep
from edgecompress.core.folders import scratch_folder
from edgecompress.core.labelled import Labelled
from edgecompress.core.units import parse_size, parse_time

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.formats import Format
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.measurement import MeasurementFile
    from edgecompress.targets.profile import TargetProfile


def silent(text: str) -> None:
    """Tells nobody."""


def load_profiles(targets: Sequence[str | Path | TargetProfile]) -> list[TargetProfile]:
    """Returns the profiles of targets, each once.

    Raises:
        ArgumentError: there is none, or two differ under one name.
    """
    from edgecompress.targets.profile import TargetProfile, load_target

    if isinstance(targets, (str, Path)) or not targets:
        raise ArgumentError(
            "targets", "be a list of at least one target", targets, 'E.g. ["nucleo-l4r5zi"].'
        )
    profiles: dict[str, TargetProfile] = {}
    for target in targets:
        profile = target if isinstance(target, TargetProfile) else load_target(str(target))
        # A target named twice is checked once; two different ones cannot share a name in a report.
        if profiles.setdefault(profile.name, profile) != profile:
            raise ArgumentError(
                "--target",
                "name different targets differently",
                profile.name,
                f"Change `name` in {target}.",
            )
    return list(profiles.values())


def check_targets(chosen: Format, profiles: Sequence[TargetProfile]) -> None:
    """Refuses targets that cannot run a format.

    Raises:
        ArgumentError: a target is of another kind.
    """
    others = [profile.name for profile in profiles if profile.kind not in chosen.targets]
    if others:
        boards = "board" in chosen.targets
        kind = "a microcontroller" if boards else "a phone or this computer (host)"
        raise ArgumentError("--target", f"be {kind} for --format {chosen.name}", others, chosen.why)


def check_flash_budget(max_flash: str | int | None, profiles: Sequence[TargetProfile]) -> None:
    """Refuses a limit of flash that nothing could be judged by."""
    if max_flash is not None and not any(profile.is_microcontroller for profile in profiles):
        raise ArgumentError(
            "--max-flash",
            "go with a microcontroller among the targets",
            [profile.name for profile in profiles],
            "--max-file-size limits the file on every target.",
        )


def check_kernels(kernels: str | None) -> None:
    """Refuses unknown kernel sets."""
    from edgecompress.targets.profile import check_choice
    from edgecompress.targets.tflm.arena import KERNELS

    if kernels is not None:
        check_choice("--kernels", kernels, KERNELS)


def check_name(name: str | None) -> None:
    """Refuses names that are no plain file name on every system."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ArgumentError(
            "name",
            "be up to 100 letters, digits, dots, hyphens and underscores, no dot or hyphen first",
            name,
        )


def check_share(argument: str, value: float | None) -> float | None:
    """Returns a share; refuses numbers outside 0 to 1."""
    if value is not None and not 0 <= value <= 1:
        raise ArgumentError(argument, "be a share between 0 and 1", value)
    return value


def parse_budgets(
    max_flash: str | int | None,
    max_ram: str | int | None,
    max_latency: str | float | None,
    max_file_size: str | int | None,
    min_accuracy: float | None,
) -> Budgets:
    """Returns the limits that a user gave as text or numbers."""
    from edgecompress.targets.checks import Budgets

    def size(value: str | int | None, argument: str) -> int | None:
        return None if value is None else parse_size(value, argument)

    if isinstance(max_latency, str):
        max_latency = parse_time(max_latency, "--max-latency")
    return Budgets(
        max_flash=size(max_flash, "--max-flash"),
        max_ram=size(max_ram, "--max-ram"),
        max_latency=max_latency,
        max_file_size=size(max_file_size, "--max-file-size"),
        min_accuracy=check_share("--min-accuracy", min_accuracy),
    )


def parse_memory(value: str | int | None) -> int | None:
    """Returns the bytes of memory for decoded weights."""
    return None if value is None else parse_size(value, "--decompression-memory")


def read_measured(
    path: Path | str | None, profiles: Sequence[TargetProfile]
) -> MeasurementFile | None:
    """Returns the measurement file, after making sure that it is of one of the targets."""
    from edgecompress.targets.measurement import check_target, read_measurement

    if path is None:
        return None
    file = read_measurement(path)
    check_target(file, profiles)
    return file


def usable_folder(output: Path | str) -> Path:
    """Returns the output folder after making sure, before any long work, that it can be written."""
    folder = Path(output)
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ArgumentError("--output", "be a folder", str(output), f"{place} is a file.")
    # What killed runs have left may fill the disk.
    for path in (place, place.resolve().parent):
        sweep(path)
    try:
        # Permissions alone do not tell: some places refuse even who may write there.
        with scratch_folder(place):
            pass
    except OSError as error:
        raise ArgumentError(
            "--output",
            "be a writable folder",
            str(output),
            f"Nothing can be made in {place}: {error.strerror}.",
        ) from error
    return folder


def labelled_data(
    evaluate: Any,
    model: Any,
    samples: tuple[np.ndarray, ...] | None,
    labels: np.ndarray | Mapping[str, np.ndarray] | None,
) -> Labelled | None:
    """Returns the labelled data, those of `evaluate` or of the calibration; None for none."""
    from edgecompress.converters import calibration

    if evaluate is None:
        if samples is None or labels is None:
            return None
        return Labelled(samples, labels, "--calibration")
    inputs, y = calibration.load(evaluate, model, argument="--evaluate", whole=True)
    if inputs is None or y is None:
        raise ArgumentError("--evaluate", "hold labels under the key y", str(evaluate)[:80])
    return Labelled(inputs, y)
