"""Commands on results; nothing that another program wrote is replaced."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import needs_extras

import tokinterp as ti
from tokinterp.cli.main import main
from tokinterp.cli.measure import demo_folder
from tokinterp.cli.results import draw_all, figure_folder


def test_a_demo_writes_into_new_empty_and_its_own_folders(tmp_path):
    for name in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        found = demo_folder(tmp_path / name)
        assert (found / "demo.txt").is_file()
        assert demo_folder(found) == found
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="something is there that no demo wrote"):
        demo_folder(tmp_path / "full")
    assert not (tmp_path / "full" / "demo.txt").exists()


def test_figures_of_the_same_format_are_not_replaced_unasked(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert figure_folder(tmp_path, "pdf", False) == tmp_path
    assert figure_folder(tmp_path, "png", True) == tmp_path
    with pytest.raises(FileExistsError, match=r"has png files already \(a.png\)"):
        figure_folder(tmp_path, "png", False)
    with pytest.raises(FileExistsError, match="is a file"):
        figure_folder(tmp_path / "a.png", "png", True)
    with pytest.raises(ValueError, match="format='gif': give one of 'png', 'pdf', 'svg'"):
        figure_folder(tmp_path, "gif", False)


@pytest.mark.slow
def test_figures_have_the_names_of_their_results(tiny_run, tmp_path):
    run = xr.DataTree.from_dict({"my lens/of": tiny_run["lens"].to_dataset()})
    names = [p.name for p in draw_all(run, tmp_path)]
    assert names
    assert all(n.startswith("my_lens_of") and n.endswith(".png") for n in names)
    assert sorted(names) == sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_all(xr.DataTree(xr.Dataset(attrs={"a": 1})), tmp_path)


def test_a_prompt_without_values_is_refused_before_a_figure_is_drawn(tiny_run, tmp_path):
    for node, there in (("lens", "they have those of 0 to"), ("spectrum", "measure with tokens=None")):
        run = xr.DataTree.from_dict({node: tiny_run[node].to_dataset()})
        with pytest.raises(ValueError, match=rf"^prompt=999: the results have no value per token .*: {there}"):
            draw_all(run, tmp_path / "figures", prompt=999)
    assert not (tmp_path / "figures").exists()


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def stored(tiny_run, tmp_path_factory):
    return ti.write(tiny_run, tmp_path_factory.mktemp("runs") / "run.zarr")


def test_export_writes_what_table_gives(call, stored, tmp_path, tiny_run):
    file = tmp_path / "values.csv"
    code, out, err = call("export", stored, "-o", file, "--result", "lens", "--variable", "entropy")
    assert (code, out) == (0, ""), err
    found, same = pd.read_csv(file), ti.table(tiny_run, "entropy")
    assert found.columns.tolist() == same.columns.tolist()
    np.testing.assert_allclose(found["value"], same["value"])
    assert f"{len(same):,} rows" in err
    code, _, err = call("export", stored, "-o", file)
    assert (code, "is there already" in err) == (2, True)
    code, _, err = call("export", stored, "-o", file, "--overwrite", "--result", "spectrum")
    assert set(pd.read_csv(file)["result"]) == {"spectrum"}


@needs_extras
def test_export_to_netcdf_and_parquet(call, stored, tmp_path, tiny_run):
    assert call("export", stored, "-o", tmp_path / "run.nc", "--result", "lens")[0] == 0
    back = ti.read(tmp_path / "run.nc")
    assert list(back.children) == ["lens"]
    xr.testing.assert_identical(back["lens"]["entropy"], tiny_run["lens"]["entropy"])
    assert call("export", stored, "-o", tmp_path / "run.parquet", "--variable", "entropy")[0] == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "run.parquet"), ti.table(tiny_run, "entropy"), check_dtype=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.xlsx"], "--output a.xlsx: write .csv, .parquet, .nc or .zarr"),
        (["-o", "a.csv", "--result", "lenz"], "--result lenz: "),
        (["-o", "a.csv", "--variable", "entropi"], "--variable 'entropi': there is no such variable; there are "),
        (["-o", "a.zarr", "--variable", "entropy"], "--variable entropy: .zarr has whole results"),
    ],
)
def test_exports_refuse_in_one_line(call, stored, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("export", stored, *arguments)
    assert (code, err.count("\n"), message in err) == (2, 1, True), err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def parts(tiny_folder, tmp_path_factory):
    """Two runs over different prompts, and the same in two shares on two machines."""
    folder = tmp_path_factory.mktemp("parts")
    texts = [t.text[:150] for t in ti.bundled_texts("story")[:4]]
    (folder / "all.txt").write_text("\n".join(t.replace("\n", " ") for t in texts))
    lines = (folder / "all.txt").read_text().split("\n")
    (folder / "a.txt").write_text("\n".join(lines[:2]))
    (folder / "b.txt").write_text("\n".join(lines[2:]))

    def measured(name, text, *more):
        words = ["measure", tiny_folder, folder / text, "--per-line", "-m", "curvature", "-o", folder / name]
        with pytest.raises(SystemExit) as end:
            main([str(w) for w in (*words, "--device", "cpu", "--max-tokens", "60", *more)])
        assert end.value.code == 0

    measured("a.zarr", "a.txt")
    measured("b.zarr", "b.txt")
    measured("one.zarr", "all.txt", "--share", "0/2")
    measured("two.zarr", "all.txt", "--share", "1/2")
    measured("whole.zarr", "all.txt")
    return folder, measured


@pytest.mark.slow
def test_merge_joins_runs_over_different_prompts(call, parts):
    folder, _ = parts
    whole = ti.read(folder / "whole.zarr")["curvature"].to_dataset()
    code, _, err = call("merge", folder / "a.zarr", folder / "b.zarr", "-o", folder / "joined.zarr", "--drop-pooled")
    assert code == 0, err
    found = ti.read(folder / "joined.zarr")["curvature"].to_dataset()
    assert found.data_vars
    for name in found.data_vars:
        xr.testing.assert_allclose(found[name], whole[name])
    code, _, err = call("merge", folder / "a.zarr", folder / "a.zarr", "-o", folder / "twice.zarr", "--drop-pooled")
    assert (code, "RUNS two are of the same prompts" in err or "two are of the same prompts" in err) == (2, True), err


@pytest.mark.slow
def test_merge_gathers_shares_that_several_machines_ran(call, parts, tmp_path):
    folder, measured = parts
    assert not (folder / "one.zarr").exists()
    code, _, err = call("merge", folder / "one.zarr", "-o", folder / "gathered.zarr")
    assert (code, "still to run: shares [1]" in err) == (0, True), err
    code, _, err = call("merge", folder / "one.zarr", folder / "two.zarr", "-o", folder / "gathered.zarr")
    assert (code, "the command of any share, with this -o, ends the run" in err) == (0, True), err
    measured("gathered.zarr", "all.txt", "--share", "0/2")
    found, whole = ti.read(folder / "gathered.zarr"), ti.read(folder / "whole.zarr")
    xr.testing.assert_allclose(found["curvature"].to_dataset(), whole["curvature"].to_dataset())
    code, _, err = call("merge", folder / "one.zarr", folder / "a.zarr", "-o", tmp_path / "x.zarr")
    assert (code, "is unfinished" in err) == (2, True), err
