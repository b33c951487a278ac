"""A phone's identity and state, read through adb; unreported values are None."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from edgecompress.core.errors import DeviceError
from edgecompress.targets.phones.adb import Phone, thermal_status

T = TypeVar("T")

_CPUS = "/sys/devices/system/cpu"
_MARK = "== edgecompress"
# Both run in one call: an adb call takes longer than the commands in it.
_DEVICE = (
    "getprop",
    "cat /proc/cpuinfo",
    "cat /proc/meminfo",
    f'for c in {_CPUS}/cpu[0-9]*; do echo "$c $(cat $c/cpufreq/cpuinfo_max_freq)"; done',
)
_STATE = (
    "dumpsys thermalservice",
    "dumpsys battery",
    "settings get global low_power",
    f"cat {_CPUS}/cpu0/cpufreq/scaling_governor",
    "cat /proc/loadavg",
    "cat /proc/meminfo",
)
# BatteryManager: charging and full; discharging and not charging.
_CHARGING = {"2": True, "5": True, "3": False, "4": False}


def _ask(phone: Phone, commands: tuple[str, ...]) -> list[str]:
    """Returns the output of each command."""
    text = f"; echo '{_MARK}'; ".join(f"{command} 2>/dev/null" for command in commands)
    answer = phone.script(text)
    parts = answer.out.split(_MARK)
    if len(parts) != len(commands):
        raise DeviceError(f"The phone {phone.serial} no longer answers: {answer.line}")
    return parts


def _number(kind: Callable[[str], T], text: str | None) -> T | None:
    try:
        return None if text is None else kind(text)
    except ValueError:
        return None


def _pairs(text: str) -> dict[str, str]:
    """Returns `name: value` lines; the first of a name counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _kibibytes(text: str | None) -> int | None:
    return _number(int, (text or "").removesuffix("kB").strip())


def properties(text: str) -> dict[str, str]:
    """Returns the properties that `getprop` prints, except empty ones.

    Example:
        >>> properties("[ro.product.model]: [Pixel 8]")
        {'ro.product.model': 'Pixel 8'}
    """
    found = re.findall(r"^\[([^\]]+)\]: \[(.*)\]\s*$", text, re.MULTILINE)
    return {name: value for name, value in found if value}


def read_device(phone: Phone) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns `device` of a measurement file, and the phone's ABIs, the best first.

    The ABI of the device is None: it depends on the program that runs.

    Raises:
        DeviceError: the phone does not answer.
    """
    props, cpu, memory, clocks = _ask(phone, _DEVICE)
    known = properties(props)
    features = re.search(r"^Features\s*:(.*)$", cpu, re.MULTILINE)
    cores = [line.split() for line in clocks.splitlines() if line.startswith(_CPUS)]
    cores.sort(key=lambda words: int(re.sub(r"\D", "", words[0]) or 0))
    abis = known.get("ro.product.cpu.abilist") or known.get("ro.product.cpu.abi") or ""
    device = {
        "manufacturer": known.get("ro.product.manufacturer"),
        "model": known.get("ro.product.model"),
        "soc": known.get("ro.soc.model") or known.get("ro.board.platform"),
        "abi": None,
        "android": known.get("ro.build.version.release"),
        "sdk": _number(int, known.get("ro.build.version.sdk")),
        "build_fingerprint": known.get("ro.build.fingerprint"),
        "cpu_features": features[1].split() if features else None,
        "cores": len(cores) or None,
        "max_freq_khz": [
            _number(int, words[1] if len(words) > 1 else None) for words in cores
        ] or None,
        "ram_kb": _kibibytes(_pairs(memory).get("MemTotal")),
    }  # fmt: skip
    return device, tuple(filter(None, abis.split(",")))


def read_state(phone: Phone) -> dict[str, Any]:
    """Returns the state of a phone at this moment, under names without `_before` and `_after`.

    Raises:
        DeviceError: the phone does not answer.
    """
    thermal, battery, saving, governor, load, memory = _ask(phone, _STATE)
    power = _pairs(battery)
    level, scale = (_number(int, power.get(name)) for name in ("level", "scale"))
    tenths = _number(int, power.get("temperature"))
    return {
        "thermal": thermal_status(thermal),
        # Only reported to apps.
        "thermal_headroom": None,
        "battery": level / scale if level is not None and scale else None,
        "battery_temperature_c": None if tenths is None else tenths / 10,
        "charging": _CHARGING.get(power.get("status", "")),
        "power_save": {"1": True, "0": False}.get(saving.strip()),
        "governor": governor.strip() or None,
        "load": _number(float, load.partition(" ")[0]),
        "available_kb": _kibibytes(_pairs(memory).get("MemAvailable")),
    }


_BOTH_ENDS = ("thermal", "thermal_headroom", "battery", "load")


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `state` of a measurement file for a run between two readings of the phone."""
    ends = {f"{key}_{end}": state[key] for key in _BOTH_ENDS
            for end, state in (("before", before), ("after", after))}  # fmt: skip
    return {**ends, **{key: value for key, value in before.items() if key not in _BOTH_ENDS}}
