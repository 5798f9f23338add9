"""Folders of commands: nothing that another program wrote is replaced."""

import pytest
import xarray as xr

from tokinterp.cli.output import DEMO, demo_folder, draw_all, figure_folder


def test_a_demo_writes_into_new_empty_and_its_own_folders(tmp_path):
    for name in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        found = demo_folder(tmp_path / name)
        assert (found / DEMO).is_file()
        assert demo_folder(found) == found
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="something is there that no demo wrote"):
        demo_folder(tmp_path / "full")
    assert not (tmp_path / "full" / DEMO).exists()


def test_figures_of_the_same_format_are_not_replaced_unasked(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert figure_folder(tmp_path, "pdf", False) == tmp_path
    assert figure_folder(tmp_path, "png", True) == tmp_path
    with pytest.raises(FileExistsError, match=r"has png files already \(a.png\)"):
        figure_folder(tmp_path, "png", False)
    with pytest.raises(FileExistsError, match="is a file"):
        figure_folder(tmp_path / "a.png", "png", True)
    with pytest.raises(ValueError, match="--format gif: write png, pdf or svg"):
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
