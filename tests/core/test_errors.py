"""Errors are one line, name what to do, and know their exit code."""

from __future__ import annotations

import pytest

from edgecompress.core import errors


def _all_errors(root: type[BaseException] = errors.EdgeCompressError) -> set[type]:
    return {root}.union(*(_all_errors(child) for child in root.__subclasses__()))


def test_exit_codes_are_those_of_the_documentation() -> None:
    codes = {error.__name__: error.exit_code for error in _all_errors()}
    usage = {name for name, code in codes.items() if code == 2}
    assert usage == {"ArgumentError", "UnknownNameError"}
    assert codes.pop("UnsupportedOperatorError") == 5
    assert {code for name, code in codes.items() if name not in usage} == {1}
    assert (errors.OK, errors.OVER_BUDGET, errors.BELOW_ACCURACY) == (0, 3, 4)


def test_argument_error_names_rule_value_and_cure() -> None:
    error = errors.ArgumentError("end_step", "be greater than begin_step", 3, "Use end_step=100.")
    assert str(error) == "`end_step` must be greater than begin_step. Got 3. Use end_step=100."
    assert str(errors.ArgumentError("x", "be text", None)) == "`x` must be text. Got None."
    assert error.argument == "end_step"
    # Callers who know nothing of this package catch what Python's own functions raise.
    assert isinstance(error, ValueError)


def test_line_breaks_in_a_value_stay_in_one_line() -> None:
    assert "\n" not in str(errors.ArgumentError("layers", "be names", "a\nb"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nucleo-l4r5z", "Did you mean nucleo-l4r5zi"),
        ("zzzzz", "Known: cortex-m4, nucleo-l4r5zi, pixel-4."),
    ],
)
def test_unknown_name_offers_the_nearest_or_all(name: str, expected: str) -> None:
    known = ["pixel-4", "nucleo-l4r5zi", "cortex-m4"]
    with pytest.raises(errors.ArgumentError, match="`--target` must be a known name") as caught:
        raise errors.UnknownNameError("--target", name, known)
    assert expected in str(caught.value)
