"""Measurements of the command line: every name is one, and settings are read as they were meant."""

import pytest

import tokinterp as ti
from tokinterp import scan
from tokinterp.cli.measurements import make_measurements, measurement_class, settings_of
from tokinterp.cli.options import parse_layers


def test_every_name_is_a_measurement_whose_settings_are_told():
    there = scan.measurements()
    for name, kind in there.items():
        assert measurement_class(name) is kind
        assert all(means for _, _, means in settings_of(kind))
        short = name.partition(".")[2]
        if [n.partition(".")[2] for n in there].count(short) == 1:
            assert measurement_class(short) is kind
    with pytest.raises(ValueError, match=r"measurement=spectrm: unknown measurement: .*did you mean 'spectrum'"):
        measurement_class("spectrm")


def test_settings_are_those_of_the_class():
    made = make_measurements(["spectrum", "lens"], ["lens.top=3", "spectrum.layers=[1]"])
    assert made["lens"].settings() == ti.lens.LogitLens(top=3).settings()
    assert made["spectrum"].settings() == ti.geometry.Spectrum(layers=[1]).settings()
    assert make_measurements(["lens"], [], "0,2-3")["lens"].layers == [0, 2, 3]


@pytest.mark.parametrize(
    ("names", "settings", "layers", "message"),
    [
        (["lens", "lens"], [], None, "-m lens is given twice"),
        (["lens"], ["lens.topp=3"], None, "--set lens.topp: lens has no setting topp; there are .*did you mean 'top'"),
        (["lens"], ["lens.top=1", "lens.top=2"], None, "is given twice"),
        (["lens"], ["spectrum.keep=1"], None, "write NAME.SETTING=VALUE"),
        (
            ["lens", "spectrum"],
            ["topp=1"],
            None,
            r"--set topp: none of these \(lens, spectrum\) has .*did you mean 'top'",
        ),
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
