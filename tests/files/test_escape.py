"""Terminals, spreadsheets and shells get texts that they show and do not obey."""

import csv
import io
import unicodedata

import numpy as np
import pytest
import xarray as xr

from tokinterp.cli import main as cli
from tokinterp.cli import vocabulary
from tokinterp.files.escape import for_cell, for_terminal, in_one_line
from tokinterp.results import tables

EVIL = "\x1b]0;x\x07\x1b[31m\x9b31m\u202e\u2066\u2028\ud800\r\x7f"


def obeyed(c):
    """Whether a terminal would obey a character: control, separator of lines, half a surrogate, direction of text."""
    turns = unicodedata.bidirectional(c) in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return turns or c in "\u200e\u200f\u061c" or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")


def left(text):
    return [c for c in text if obeyed(c) and c not in "\n\t"]


def test_no_control_character_is_left_and_other_text_is_kept():
    for c in map(chr, range(0x11000)):
        shown = for_terminal(f"a{c}b")
        assert (shown == f"a{c}b") is (c in "\n\t" or not obeyed(c)), hex(ord(c))
        shown.encode()
    assert in_one_line("a\n\tb") == "a⏎⇥b"
    assert for_terminal("naïve 水 👩‍👩‍👧 שלום") == "naïve 水 👩‍👩‍👧 שלום"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1"])
def test_no_string_is_a_formula_and_numbers_stay_numbers(text):
    assert for_cell(text) == "'" + text
    for value in (-1.5, -1, 0, None, True, "a=1", "", " -1"):
        assert for_cell(value) is value


def rows(text):
    values = {"rank": 1, "psi": -0.5, "psi_low": -0.6, "psi_high": float("nan"), "psi_sd": 0.1, "count": 2,
              "n_documents": 1, "n_tokens": 2, "text": text, "ids": "1 2", "left_boundary": True,
              "right_boundary": True, "valid_utf8": True, "seen": True, "context": text}  # fmt: skip
    assert tuple(values) == vocabulary.COLUMNS
    return [values]


def test_the_table_of_units():
    shown = vocabulary.as_text(rows("\n\t" + EVIL))
    assert len(shown.splitlines()) == 2
    assert not left(shown)
    assert left(EVIL)
    assert "⏎⇥␛]0;x␇" in shown
    (line,) = csv.DictReader(io.StringIO(vocabulary.as_csv(rows('=HYPERLINK("x")'))))
    assert line["text"] == line["context"] == '\'=HYPERLINK("x")'
    assert (line["psi"], line["psi_high"], line["ids"]) == ("-0.5", "", "1 2")


def test_what_is_shown_of_a_run():
    bad = "\n" + EVIL
    two = xr.Dataset({"x": (("layer", "side"), np.zeros((1, 1)))}, {"layer": [0], "side": [bad]}, {"measurement": bad})
    none = xr.Dataset({bad: ("q", np.zeros(1))}, attrs={"measurement": bad})
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"model": bad}), "/" + bad: two, "/none": none})
    shown = tables.summary_text(tree)
    assert not left(shown)
    assert left(EVIL)
    assert shown.count("⏎") >= 5
    assert "model" in shown


def test_a_message_about_a_name_with_control_characters(capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["show", str(tmp_path / "\x1b[31m\u202e.zarr")])
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "␛[31m\\u202e.zarr" in err
