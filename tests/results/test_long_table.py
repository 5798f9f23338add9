"""A long table has each value once, beside its labels."""

import csv

import numpy as np
import pytest

import tokinterp as ti
from tokinterp.results.long_table import write_table


def test_each_value_stands_beside_its_labels(tiny_run):
    ds = tiny_run["lens"].to_dataset()
    found = ti.table(tiny_run["lens"], "entropy")
    assert len(found) == ds["entropy"].size
    for _, row in found.sample(20, random_state=0).iterrows():
        value = ds["entropy"].sel(prompt=row["prompt"], layer=row["layer"], variant=row["variant"])
        assert row["value"] == pytest.approx(float(value))
        assert row["relative_depth"] == pytest.approx(row["layer"] / ds["layer"].values[-1])
        assert row["units"] == "nat"
    both = ti.table(tiny_run)
    assert set(both["result"]) == {"dimension", "lens", "spectrum"}
    assert len(both) == sum(
        v.size for name in ("dimension", "lens", "spectrum") for v in tiny_run[name].data_vars.values()
    )
    assert str(both["layer"].dtype) == "Int64"


def test_ids_are_told_as_strings(tiny_run):
    ds = tiny_run["lens"].to_dataset()
    found = ti.table(ds, "top_id")
    strings = dict(zip(ds["vocab"].values.tolist(), ds["vocab_text"].values.tolist(), strict=True))
    assert found["string"].tolist() == [strings[int(i)] for i in found["value"]]


def test_what_there_is_not_is_named(tiny_run):
    with pytest.raises(ValueError, match="variables='entropi': there is no such variable; there are"):
        ti.table(tiny_run, "entropi")


def test_no_string_of_a_csv_is_a_formula(tiny_run, tmp_path):
    ds = tiny_run["lens"].to_dataset()[["token_entropy"]].isel(layer=[0])
    ds["text"] = ("token", np.array(["=1+1"] * ds.sizes["token"], dtype=object), ds["text"].attrs)
    n = write_table(ds, tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == n == ds["token_entropy"].size
    assert {r["text"] for r in rows} == {"'=1+1"}
