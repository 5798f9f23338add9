"""Results on object stores, by fsspec's own of memory and of files."""

import json

import pytest
import xarray as xr
from fsspec.implementations.memory import MemoryFileSystem
from tiny import Norms, some_prompts, tiny

import tokinterp as ti
from tokinterp.cli.main import main


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])


@pytest.fixture
def run():
    return measured()


def measured(store=None, layers=None, **options):
    return ti.measure(tiny(), some_prompts([9, 8, 7]), {"n": Norms(layers)}, store=store, progress=False, **options)


def urls(tmp_path):
    return ["memory://runs/norms.zarr", f"file://{tmp_path}/deep/norms.zarr"]


def same(a, b):
    assert sorted(a.children) == sorted(b.children)
    xr.testing.assert_equal(a["n"].to_dataset(), b["n"].to_dataset())


def test_a_run_is_stored_read_and_taken_up_again(tmp_path, run):
    for url in urls(tmp_path):
        found = measured(url)
        same(found, run)
        same(ti.read(url), run)
        assert measured(url).identical(found), "measured again"
        assert not list((tmp_path / "cache" / "tokinterp").iterdir()), "the run stays on this machine"
        with pytest.raises(ValueError, match=r"belongs to another run; it differs in: measurements"):
            measured(url, layers=[1])
        same(ti.read(url), run)
    assert (tmp_path / "deep" / "norms.zarr" / "zarr.json").is_file()


def test_what_is_unfinished_stays_here_and_goes_on(tmp_path):
    url = "memory://runs/norms.zarr"

    class Stops(Norms):
        def update(self, batch):
            super().update(batch)
            if Stops.left == 0:
                raise RuntimeError("stopped")
            Stops.left -= 1

    Stops.left = 1
    given = {"store": url, "batch_tokens": 9, "checkpoint_every": 0, "progress": False}
    with pytest.raises(RuntimeError, match="stopped"):
        ti.measure(tiny(), some_prompts([9, 8, 7]), {"n": Stops()}, **given)
    assert not MemoryFileSystem().find("/runs")
    assert list((tmp_path / "cache" / "tokinterp").glob("*-norms.zarr.partial/*.safetensors"))
    Stops.left = 2  # of three: the first is kept
    same(ti.measure(tiny(), some_prompts([9, 8, 7]), {"n": Stops()}, **given), measured(batch_tokens=9))


def test_a_result_that_could_not_be_copied_is_copied_by_the_next_call(monkeypatch, run):
    url = "memory://runs/norms.zarr"
    put = MemoryFileSystem.put_file

    def broken(self, lpath, rpath, **options):
        if rpath.endswith("norms.zarr/n/zarr.json"):  # one of many pieces
            raise OSError("the network is gone")
        return put(self, lpath, rpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", broken)
    with pytest.raises(OSError, match="the network is gone"):
        measured(url)
    with pytest.raises(FileNotFoundError, match=r"no result at memory://runs/norms\.zarr"):
        ti.read(url)
    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    monkeypatch.setattr("tokinterp.run.loop.Runner._capture", None)
    same(measured(url), run)
    same(ti.read(url), run)


def test_results_are_written_and_replaced(tmp_path, run):
    other = measured(layers=[1])
    for url in [*urls(tmp_path), "memory://runs/norms.nc"]:
        given = run["n"].to_dataset() if url.endswith(".nc") else run
        assert ti.write(given, url) == url
        with pytest.raises(FileExistsError, match=f"{url} exists: give another name or overwrite=True"):
            ti.write(given, url)
        ti.write(other["n"].to_dataset() if url.endswith(".nc") else other, url, overwrite=True)
        found = ti.read(url)
        assert (found if url.endswith(".nc") else found["n"])["layer"].values.tolist() == [1]


def test_a_result_is_read_lazily_and_by_the_command_line(tmp_path, run, capsys):
    url, page = "memory://runs/norms.zarr", tmp_path / "report.html"
    ti.write(run, url)
    lazy = ti.read(url, chunks={"prompt": 1})
    assert lazy["n"]["norm"].chunks is not None
    same(lazy.load(), run)
    assert ti.report(url, page).stat().st_size > 1000
    url = ti.write(run, f"file://{tmp_path}/norms.zarr")
    for words in (["show", url], ["export", url, "-o", str(tmp_path / "norms.csv")]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0, capsys.readouterr().err
    assert "mean norm" in capsys.readouterr().out


def test_damage_and_what_leads_elsewhere_is_refused(tmp_path, run):
    url, fs = "memory://runs/norms.zarr", MemoryFileSystem()
    ti.write(run, url)
    root = "/runs/norms.zarr/zarr.json"
    attributes = json.loads(fs.cat_file(root))
    attributes["attributes"]["model"] = "another"
    fs.pipe_file(root, json.dumps(attributes).encode())
    with pytest.raises(ValueError, match="is damaged"):
        ti.read(url)
    fs.store["/runs/norms.zarr/../../escaped"] = fs.store[root]
    with pytest.raises(ValueError, match=r"names a file '\.\.'"):
        ti.read(url)
    assert not (tmp_path / "escaped").exists()
    fs.pipe_file("/runs/other.zarr/notes.txt", b"mine")
    with pytest.raises(FileExistsError, match="is a folder that is no result"):
        ti.write(run, "memory://runs/other.zarr", overwrite=True)
    assert fs.cat_file("/runs/other.zarr/notes.txt") == b"mine"


def test_what_somebody_else_writes_meanwhile_is_kept(tmp_path, run, monkeypatch):
    from tokinterp.run.loop import Runner

    url, read = "memory://runs/norms.zarr", Runner._capture

    def and_another(self, *given):
        ti.write(run, url, overwrite=True)
        return read(self, *given)

    monkeypatch.setattr(Runner, "_capture", and_another)
    with pytest.raises(FileExistsError, match=r"was written by another run meanwhile; .*tokinterp/\w+-norms.zarr"):
        measured(url)
    same(ti.read(url), run)
    assert list((tmp_path / "cache" / "tokinterp").glob("*-norms.zarr/zarr.json"))


def test_a_result_that_is_no_other_ones_leaves_what_this_machine_kept(tmp_path, run, monkeypatch):
    from tokinterp.run.loop import Runner

    url, other, read = "memory://runs/norms.zarr", measured(layers=[1]), Runner._capture

    def and_another(self, *given):
        ti.write(other, url, overwrite=True)
        return read(self, *given)

    with monkeypatch.context() as m:
        m.setattr(Runner, "_capture", and_another)
        with pytest.raises(FileExistsError, match="was written by another run meanwhile"):
            measured(url)
    with pytest.raises(ValueError, match=f"^{url} belongs to another run"):
        measured(url)
    [kept] = (tmp_path / "cache" / "tokinterp").glob("*-norms.zarr")
    same(ti.read(kept), run)
    MemoryFileSystem().rm("/runs/norms.zarr", recursive=True)
    monkeypatch.setattr(Runner, "_capture", None)
    same(measured(url), run)
    assert not list((tmp_path / "cache" / "tokinterp").iterdir())


@pytest.mark.parametrize("there", ["runs/a.zarr", "c/mine/notes.txt", "zarr.json.d/notes.txt"])
def test_nothing_else_is_deleted(there, run):
    """Neither the results of a folder whose name is given instead of one in it, nor what lies in a folder named c."""
    fs = MemoryFileSystem()
    if there.endswith(".zarr"):
        ti.write(run, f"memory://{there}")
    else:
        fs.pipe_file(f"/{there}", b"mine")
    before = {name: fs.cat_file(name) for name in fs.find("/")}
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is a folder that is no result"):
            ti.write(run, f"memory://{there.rsplit('/', 1)[0]}", overwrite=overwrite)
    assert {name: fs.cat_file(name) for name in fs.find("/")} == before


def test_a_folder_of_other_things_is_refused_before_the_run(run, monkeypatch):
    ti.write(run, "memory://runs/a.zarr")
    monkeypatch.setattr("tokinterp.run.loop.Runner.run", None)
    with pytest.raises(FileExistsError, match="memory://runs holds no whole result, but other things"):
        measured("memory://runs")


def test_a_result_with_single_numbers_is_replaced(run):
    ds = run["n"].to_dataset()
    ds["mean"] = ds["norm"].mean(keep_attrs=True)
    url = ti.write(ds, "memory://runs/mean.zarr")
    ds["mean"] = ds["mean"] * 2
    ds["mean"].attrs = ds["norm"].attrs
    ti.write(ds, url, overwrite=True)
    assert ti.read(url)["mean"] == ds["mean"]


def test_what_is_written_while_a_result_is_made_ready_is_not_replaced(run, monkeypatch):
    from tokinterp.results import stores

    url, made = "memory://runs/norms.zarr", []

    def meanwhile(path, new_folder=stores.new_folder):
        if not made:
            made.append(path)
            ti.write(run, url)
        return new_folder(path)

    monkeypatch.setattr(stores, "new_folder", meanwhile)
    with pytest.raises(FileExistsError, match="exists: give another name"):
        ti.write(measured(layers=[1]), url)
    same(ti.read(url), run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": "memory://x.zarr", "share": (0, 2)}, "shares meet on a file system"),
        ({"store": "memory://"}, "store='memory://' names no result"),
        ({"store": "gs://bucket/x.zarr"}, "store='gs://bucket/x.zarr' is a URL: .* install"),
        ({"store": "ftp://host/x.zarr"}, "is a URL"),
    ],
)
def test_what_cannot_be_a_store_is_refused_before_the_run(options, message, monkeypatch):
    monkeypatch.setattr("tokinterp.run.loop.Runner.run", None)
    with pytest.raises(ValueError, match=message):
        measured(**options)
