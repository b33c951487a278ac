"""Energy: latency times power, what is not known, and limits on both sides of the band."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.results import CheckResult
from edgecompress.targets.checks import Budgets, check
from edgecompress.targets.power import OTHER_SETUPS, PowerModel, PublishedEnergy, around
from edgecompress.targets.profile import TargetProfile, load_target

from .test_checks import chain, dense

BOARD = load_target("nucleo-l4r5zi")


def _row(microjoules: float, milliseconds: float = 10.0, **more: Any) -> PublishedEnergy:
    values = {"round": "v1", "benchmark": "ad", "runtime": "r", "file": "f", **more}
    return PublishedEnergy(microjoules=microjoules, milliseconds=milliseconds, **values)


def _checks(target: TargetProfile, model: Any = None, **options: Any) -> dict[str, CheckResult]:
    model = dense() if model is None else model
    return {c.rule: c for c in check(model, target, Budgets(), options=options).checks}


def test_energy_is_latency_times_power() -> None:
    found = _checks(BOARD)
    latency, energy = found["latency"], found["energy"]
    assert latency.low and latency.high and latency.measured
    # By hand, from the published rows: 421.9 / 8.57 mW and so on.
    powers = [row.microjoules / row.milliseconds for row in BOARD.power.published]
    middle = (min(powers) * max(powers)) ** 0.5
    low, high = min(*powers, middle / 1.55), max(*powers, middle * 1.55)
    assert energy.low == pytest.approx(latency.low * low / 1e3)
    assert energy.high == pytest.approx(latency.high * high / 1e3)
    assert energy.low < energy.measured < energy.high
    assert (energy.verdict, energy.unit, energy.how_known) == (
        "not_applicable", "microjoules", "predicted",
    )  # fmt: skip


def test_a_measured_power_makes_the_band_narrower() -> None:
    wide, narrow = _checks(BOARD)["energy"], _checks(BOARD, power=50.0)["energy"]
    assert narrow.detail["known_from"] == "your measurement"
    assert wide.low < narrow.low < narrow.high < wide.high
    latency = _checks(BOARD)["latency"]
    assert narrow.measured == pytest.approx(latency.measured * 50.0 / 1e3)
    assert (narrow.low, narrow.high) == pytest.approx(
        (latency.low * 50.0 / 1.12 / 1e3, latency.high * 50.0 * 1.12 / 1e3)
    )


def test_a_latency_measured_on_the_device_takes_the_place_of_the_predicted_one() -> None:
    predicted = _checks(BOARD, power=50.0)["energy"]
    for band in ((None, None), (900.0, 1300.0)):
        latency = CheckResult(
            "latency", "not_applicable", 1000.0, *band, unit="microseconds",
            how_known="measured_device",
        )  # fmt: skip
        found = {
            c.rule: c
            for c in check(
                dense(), BOARD, Budgets(), options={"power": 50.0}, extra=(latency,)
            ).checks
        }["energy"]
        low, high = around(50.0)
        times = [t or 1000.0 for t in band]
        assert (found.low, found.high) == pytest.approx((times[0] * low / 1e3,
                                                         times[1] * high / 1e3))  # fmt: skip
        assert found.measured == pytest.approx(1000.0 * 50.0 / 1e3)
        assert found.detail["latency"] == "measured_device"
        assert found.high / found.low < predicted.high / predicted.low
    assert predicted.detail["latency"] == "predicted"
    # Where no latency is predicted, the measured one alone makes an energy known.
    phone = {
        c.rule: c
        for c in check(
            dense(), load_target("pixel-8"), Budgets(),
            options={"power": 2000.0, "max_energy": 2000.0}, extra=(latency,),
        ).checks
    }["energy"]  # fmt: skip
    assert phone.verdict == "uncertain"
    assert "by the measured latency straddles" in str(phone.reason)


def test_a_latency_that_was_measured_in_doubt_decides_no_energy() -> None:
    latency = CheckResult(
        "latency", "uncertain", 1000.0, 900.0, 1300.0, unit="microseconds",
        how_known="measured_device", reason="The device was throttled.",
    )  # fmt: skip
    for limit in (1e9, 1e-3):
        options = {"power": 50.0, "max_energy": limit}
        (found,) = [
            c
            for c in check(dense(), BOARD, Budgets(), options=options, extra=(latency,)).checks
            if c.rule == "energy"
        ]
        assert found.verdict == "uncertain"
        assert "uncertain. The device was throttled." in str(found.reason)


@pytest.mark.parametrize(
    ("place", "verdict"),
    [(1.01, "pass"), (1.0, "pass"), (0.99, "uncertain"), (0.5, "uncertain"), (-1.0, "fail")],
)
def test_a_limit_is_judged_by_the_whole_band(place: float, verdict: str) -> None:
    band = _checks(BOARD)["energy"]
    limit = band.low * 0.99 if place < 0 else band.low + place * (band.high - band.low)
    found = _checks(BOARD, max_energy=limit)["energy"]
    assert found.verdict == verdict
    assert found.limit == limit
    assert bool(found.reason) == (verdict != "pass")
    if verdict == "uncertain":
        assert "--power" in str(found.reason)


@pytest.mark.parametrize("name", ["cortex-m4", "nrf5340-dk", "pixel-8", "host"])
def test_without_a_known_power_a_limit_is_never_met(name: str) -> None:
    target = load_target(name)
    free, limited = _checks(target)["energy"], _checks(target, max_energy=1e9)["energy"]
    assert (free.verdict, free.measured) == ("not_applicable", None)
    assert (limited.verdict, limited.measured) == ("not_measured", None)
    assert "--power" in str(limited.reason)


@pytest.mark.parametrize("name", ["cortex-m4", "pixel-8"])
def test_power_without_a_latency_decides_nothing(name: str) -> None:
    found = _checks(load_target(name), power=50.0, max_energy=1e9)["energy"]
    assert found.verdict == "not_measured"
    assert "latency" in str(found.reason)


def test_a_latency_known_only_from_below_can_fail_but_not_pass() -> None:
    # EXP has no instruction formula, FULLY_CONNECTED has.
    model = chain(("EXP", {}))
    both = dataclasses.replace(
        dense(), operators=(*dense().operators, dataclasses.replace(model.operators[0], index=1,
                                                                    inputs=(3,), outputs=(3,))),
    )  # fmt: skip
    found = _checks(BOARD, both)
    assert found["latency"].high is None
    assert found["energy"].verdict == "not_applicable"
    least = found["latency"].low
    assert least
    assert _checks(BOARD, both, max_energy=1e9)["energy"].verdict == "not_measured"
    tight = _checks(BOARD, both, max_energy=least * 1e-3)["energy"]
    assert (tight.verdict, tight.high) == ("fail", None)
    assert "at least" in str(tight.reason)


def test_an_exceeded_energy_ends_with_3_an_open_one_with_6(tmp_path: Path) -> None:
    file = tmp_path / "dense.tflite"
    file.write_bytes(_tflite())
    codes = {
        limit: ec.check(file, ["nucleo-l4r5zi"], max_energy=limit).exit_code
        for limit in ("1J", "0.01uJ")
    }
    assert codes == {"1J": 0, "0.01uJ": 3}
    assert ec.check(file, ["nrf5340-dk"], max_energy="1J").exit_code == 6
    assert ec.check(file, ["nrf5340-dk"], max_energy="1J", power="20mW").exit_code == 0


def _tflite() -> bytes:
    import keras

    from edgecompress.pipeline.trial_file import trial_file

    keras.utils.set_random_seed(0)
    return trial_file(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])).artifact.data


@pytest.mark.parametrize("text", ["5", "-1mJ", "0uJ", "nan", "5mW", "1e9999J", ""])
def test_energies_need_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ArgumentError, match="max-energy|max_energy"):
        ec.check("missing.tflite", ["nucleo-l4r5zi"], max_energy=text)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), True])
def test_plain_numbers_have_to_be_positive(value: float) -> None:
    with pytest.raises(ArgumentError, match="power"):
        ec.check("missing.tflite", ["nucleo-l4r5zi"], power=value)


def test_the_band_of_powers_is_that_of_all_setups_and_never_narrow() -> None:
    wide = PowerModel((_row(300.0), _row(900.0), _row(500.0)))
    assert wide.milliwatts == pytest.approx((30.0, 90.0))
    alone = PowerModel((_row(500.0),))
    assert alone.milliwatts == pytest.approx((50 / OTHER_SETUPS, 50 * OTHER_SETUPS))
    low, high = around(50.0)
    assert low * high == pytest.approx(50.0**2)


def test_rows_without_a_measurement_are_refused() -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="microjoules"):
            _row(wrong)
        with pytest.raises(ArgumentError, match="milliseconds"):
            _row(1.0, wrong)
    with pytest.raises(UnknownNameError, match="benchmark"):
        _row(1.0, benchmark="mnist")
    tables = BOARD.to_dict()
    with pytest.raises(ArgumentError, match="at least one row"):
        TargetProfile.from_dict({**tables, "power": {"published": []}})
    assert TargetProfile.from_dict(tables) == BOARD


def test_the_latency_is_predicted_once_for_all_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecompress.targets.families import tflm

    calls = []
    predict = tflm.predict
    monkeypatch.setattr(tflm, "predict", lambda *a: calls.append(1) or predict(*a))
    assert _checks(BOARD)["energy"].measured
    assert len(calls) == 1
