"""Measurements of the command line: every name is one, and settings are read as they were meant."""

import pytest

import tokinterp as ti
from tokinterp.cli_settings import MEASUREMENTS, make_measurements, measurement_class, parse_layers, settings_of


def test_every_name_is_a_measurement_whose_settings_are_told():
    for name, kind in MEASUREMENTS.items():
        assert measurement_class(name).__name__ == kind
        assert all(says for _, says in settings_of(name))
    with pytest.raises(ValueError, match=r"-m spectrm: unknown measurement: .*did you mean 'spectrum'"):
        measurement_class("spectrm")


def test_settings_are_those_of_the_class():
    made = make_measurements(["spectrum", "lens"], ["lens.top=3", "spectrum.layers=[1]"], None)
    assert made["lens"].settings() == ti.LogitLens(top=3).settings()
    assert made["spectrum"].settings() == ti.Spectrum(layers=[1]).settings()
    assert make_measurements(["lens"], [], "0,2-3")["lens"].layers == [0, 2, 3]


@pytest.mark.parametrize(
    ("names", "settings", "layers", "message"),
    [
        (["lens", "lens"], [], None, "-m lens is given twice"),
        (["lens"], ["lens.topp=3"], None, "has no setting topp; .*did you mean 'top'"),
        (["lens"], ["lens.top=1", "lens.top=2"], None, "is given twice"),
        (["lens"], ["spectrum.keep=1"], None, "write NAME.SETTING=VALUE"),
        (["lens"], ["lens.top=-1"], None, "^--set lens.top=-1"),
        (["linearity"], [], "1", "--layers 1: linearity has no such setting"),
    ],
)
def test_wrong_settings_are_named(names, settings, layers, message):
    with pytest.raises(ValueError, match=message):
        make_measurements(names, settings, layers)


def test_layers_are_numbers_and_ranges():
    assert parse_layers("0,4,8-10") == [0, 4, 8, 9, 10]
    for bad in ("a", "3-1", "", "1,,2"):
        with pytest.raises(ValueError, match="layers"):
            parse_layers(bad)
