"""The request for a build, checked before any long work.

`build_request` turns what a user gives (names, paths and texts) into a `BuildRequest`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.files import sweep
from edgecompress.core.folders import scratch_folder
from edgecompress.core.labelled import Labelled
from edgecompress.core.units import parse_size, parse_time
from edgecompress.pipeline.options import FormatOptions
from edgecompress.pipeline.scoring import Scoring, check_share, parse_scoring
from edgecompress.targets.profile import Budgets

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.formats import Format
    from edgecompress.targets.measurement import MeasurementFile
    from edgecompress.targets.profile import TargetProfile


def silent(text: str) -> None:
    """Ignores a progress message."""


@dataclass(frozen=True, eq=False)
class BuildRequest:
    """The input of `build`. It has no output folder, as a build writes nothing.

    Attributes:
        model: A Keras model or a LoadedModel; the path of a model file; or a .tflite file, as a
            path or, without a format, as bytes.
        profiles: The targets, at least one.
        file_format: Which format to make. None checks the .tflite file as it is.
        options: The format's own options, an instance of `Format.options`.
        name: Base name of the files. None for the model's own.
        budgets: The user's limits, which take precedence over those of the profiles.
        target_options: Name -> value of the options of families of targets and of rules; what is
            not there is as each profile says.
        scoring: What is requested about accuracy.
        min_agreement: Floor for the agreement with the Keras model. None for the default.
        min_r2: Floor for R2 of each column of values. None for the default.
        calibration: Calibration data, as `calibration.load` takes it. None for none.
        evaluate: Labelled data in the same forms. None for the labels beside the calibration data.
        measured: A measurement on one of the targets. None for none.
        labels: Class names, for the bundle.
        decompression_memory: Without a format: memory outside the arena for decoded weights, in
            bytes. None for none.
        bundle: Whether to make the bundle, for which every file runs on a few samples, if a phone
            or the host is among the targets.
        import_modules: Modules that register the layers of a model file; imported in the process
            that reads it.
        verbose: Let the log of the converters through.
        by_sample: Whether to keep the metric of each labelled sample.
    """

    model: Any
    profiles: tuple[TargetProfile, ...]
    file_format: str | None = None
    options: Any = None
    name: str | None = None
    budgets: Budgets = Budgets()
    target_options: Mapping[str, Any] = field(default_factory=dict)
    scoring: Scoring = Scoring()
    min_agreement: float | None = None
    min_r2: float | None = None
    calibration: Any = field(default=None, repr=False)
    evaluate: Any = field(default=None, repr=False)
    measured: MeasurementFile | None = None
    labels: tuple[str, ...] | None = None
    decompression_memory: int | None = None
    bundle: bool = True
    import_modules: tuple[str, ...] = ()
    verbose: bool = False
    by_sample: bool = False


def build_request(
    model: Any,
    targets: Sequence[str | Path | TargetProfile],
    *,
    file_format: str | None = FormatOptions.file_format,
    options: Mapping[str, Any] | None = None,
    calibration: Any = None,
    evaluate: Any = None,
    name: str | None = None,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    metric: Any = None,
    min_metric: Any = None,
    max_metric: Any = None,
    max_drop: Any = None,
    min_agreement: float | None = None,
    min_r2: float | None = None,
    decompression_memory: str | int | None = None,
    labels: Path | str | Sequence[str] | None = None,
    measured: Path | str | None = None,
    bundle: bool = True,
    import_modules: Sequence[str] = (),
    verbose: bool = False,
) -> BuildRequest:
    """Returns the request that these arguments make; all but `options` are as in `export`.

    Args:
        model: As in `BuildRequest`.
        targets: Names, paths of .toml profiles, or profiles.
        file_format: A name in `FORMATS`. None checks a .tflite file as it is.
        options: Name -> value of the options of the format, of families of targets and of rules;
            None means not given.
        calibration: Calibration data.
        evaluate: Labelled data.
        name: Base name of the files.
        max_flash: A budget, as are the next three.
        max_ram: Bytes or a size, e.g. `"96KiB"`.
        max_latency: Microseconds or a time, e.g. `"60ms"`.
        max_file_size: As `max_ram`.
        min_accuracy: A share.
        metric: As in `export`, as are the limits of metrics.
        min_metric: Floors.
        max_metric: Ceilings.
        max_drop: Against the Keras model.
        min_agreement: A share.
        min_r2: A share.
        decompression_memory: Without a format: as in `BuildRequest`.
        labels: Names of the classes, or the path of a text file with one per line.
        measured: Path of a measurement file.
        bundle: As in `BuildRequest`.
        import_modules: As in `BuildRequest`.
        verbose: As in `BuildRequest`.

    Raises:
        EdgeCompressError: an argument is wrong.

    Example:
        >>> build_request(model, ["cortex-m4"], max_ram="96KiB").budgets.max_ram  # doctest: +SKIP
        98304
    """
    from edgecompress.converters.formats import FORMATS
    from edgecompress.converters.formats import format_options as parse_format
    from edgecompress.pipeline.bundle import bundle_profile, read_labels

    profiles = load_profiles(targets)
    budgets = parse_budgets(max_flash, max_ram, max_latency, max_file_size, min_accuracy)
    check_flash_budget(max_flash, profiles)
    scoring = parse_scoring(min_accuracy, metric, min_metric, max_metric, max_drop)
    target_options, others = split_options(options or {})
    check_share("--min-agreement", min_agreement)
    check_share("--min-r2", min_r2)
    own = None
    if file_format is not None:
        chosen = FORMATS[file_format]
        check_targets(chosen, profiles)
        own = parse_format(chosen, others)
    else:
        _refuse_unknown(others)
    memory = parse_memory(decompression_memory)
    timed = read_measured(measured, profiles)
    class_names = read_labels(labels)
    if class_names is not None and bundle_profile(profiles) is None:
        raise ArgumentError(
            "--labels", "go with a phone or the host among the targets", [p.name for p in profiles]
        )
    check_name(name)
    return BuildRequest(
        model=model,
        profiles=tuple(profiles),
        file_format=file_format,
        options=own,
        name=name,
        budgets=budgets,
        target_options=target_options,
        scoring=scoring,
        min_agreement=min_agreement,
        min_r2=min_r2,
        calibration=calibration,
        evaluate=evaluate,
        measured=timed,
        labels=class_names,
        decompression_memory=memory,
        bundle=bundle,
        import_modules=tuple(import_modules),
        verbose=verbose,
    )


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
        # A target named twice is checked once; two different targets cannot share a name in a
        # report.
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
        ArgumentError: a target is of another family.
    """
    from edgecompress.targets.family import family_of, titles

    families = chosen.families
    others = [p.name for p in profiles if families and family_of(p).name not in families]
    if others:
        rule = f"be {titles(families)} for --format {chosen.name}"
        raise ArgumentError("--target", rule, others, chosen.why)


def check_flash_budget(max_flash: str | int | None, profiles: Sequence[TargetProfile]) -> None:
    """Refuses a flash limit that does not apply to any target."""
    from edgecompress.targets.family import family_of

    if max_flash is not None and not any(family_of(profile).has_arena for profile in profiles):
        raise ArgumentError(
            "--max-flash",
            "go with a microcontroller among the targets",
            [profile.name for profile in profiles],
            "--max-file-size limits the file on every target.",
        )


def split_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options of families and rules, parsed, and those that are left.

    Args:
        given: Name -> value; None means not given.

    Raises:
        ArgumentError: a value breaks its rule.
    """
    from edgecompress.targets.rule import target_options

    owned = target_options()
    found = {
        name: owned[name].kind.parse(value, owned[name].flag)
        for name, value in given.items()
        if name in owned and value is not None
    }
    return found, {name: value for name, value in given.items() if name not in owned}


def _refuse_unknown(names: Iterable[str]) -> None:
    """Refuses options that nothing reads: a limit with a misspelt name must not be lost.

    Raises:
        UnknownNameError: there is one.
    """
    from edgecompress.core.options import options_of
    from edgecompress.pipeline.options import BudgetOptions, ScoringOptions
    from edgecompress.targets.rule import option_owners

    owners = (BudgetOptions, ScoringOptions, *option_owners())
    known = [option.name for owner in owners for option in options_of(owner)]
    for name in names:
        raise UnknownNameError("option of check", name, known)


def check_name(name: str | None) -> None:
    """Refuses names that are not a plain file name on every system."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ArgumentError(
            "name",
            "be up to 100 letters, digits, dots, hyphens and underscores, no dot or hyphen first",
            name,
        )


def parse_budgets(
    max_flash: str | int | None,
    max_ram: str | int | None,
    max_latency: str | float | None,
    max_file_size: str | int | None,
    min_accuracy: float | None,
) -> Budgets:
    """Returns the limits that a user gave as text or numbers."""

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
    """Returns the measurement file, after making sure that it is for one of the targets."""
    from edgecompress.targets.measurement import read_measurement
    from edgecompress.targets.measurement_checks import check_target

    if path is None:
        return None
    file = read_measurement(path)
    check_target(file, profiles)
    return file


def usable_folder(output: Path | str) -> Path:
    """Returns the output folder, after making sure, before any long work, that it is writable."""
    if not isinstance(output, (str, Path)):
        raise ArgumentError("--output", "be the path of a folder", output)
    folder = Path(output)
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ArgumentError("--output", "be a folder", str(output), f"{place} is a file.")
    # Leftovers of killed runs may fill the disk.
    for path in (place, place.resolve().parent):
        sweep(path)
    try:
        # Permissions are not enough: some places refuse even users who may write there.
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
    """Returns the labelled data, from `evaluate` or the calibration data; None for none."""
    from edgecompress.converters import calibration

    if evaluate is None:
        if samples is None or labels is None:
            return None
        return Labelled(samples, labels, "--calibration")
    inputs, y = calibration.load(evaluate, model, argument="--evaluate", whole=True)
    if inputs is None or y is None:
        raise ArgumentError("--evaluate", "hold labels under the key y", str(evaluate)[:80])
    return Labelled(inputs, y)
