"""Files are written whole, with the umask's permissions, and through no link."""

import errno
import os
import pathlib
import stat

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.files import whole as files
from tokinterp.files.owner import open_lock
from tokinterp.run.facts import claim

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
WRITERS = {
    "bytes": lambda path: files.write_bytes(path, b"new"),
    "text": lambda path: files.write_text(path, "new"),
    "tensors": lambda path: files.write_tensors(path, {"a": torch.arange(3)}),
}


@pytest.fixture
def umask():
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@posix
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_those_of_the_umask(tmp_path, umask, writer, mask, mode):
    umask(mask)
    path = WRITERS[writer](tmp_path / "deep" / "file")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(path.parent) == ["file"]


@posix
@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_neither_followed_nor_replaced(tmp_path, writer, monkeypatch):
    (tmp_path / "precious").write_text("old")
    (tmp_path / "link").symlink_to("precious")
    with pytest.raises(OSError, match="link is no plain file"):
        WRITERS[writer](tmp_path / "link")
    monkeypatch.setattr(files, "private_name", lambda path, kind: path.with_name(f".{path.name}.{kind}-guessed"))
    (tmp_path / ".file.writing-guessed").symlink_to("precious")
    with pytest.raises(FileExistsError):
        WRITERS[writer](tmp_path / "file")
    with pytest.raises(FileExistsError):
        files.new_folder(tmp_path / "file")
    assert (tmp_path / "precious").read_text() == "old"
    assert (tmp_path / ".file.writing-guessed").is_symlink()


@posix
def test_no_device_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="no plain file"):
            files.write_text(place, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_that_cannot_be_written_is_refused_by_the_name_that_was_given(tmp_path, monkeypatch):
    """Whatever permission bits say: a file system may be read-only for everybody."""

    def closed(real):
        def refuse(path, *args, **options):
            if pathlib.Path(path).name.startswith("."):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return real(path, *args, **options)

        return refuse

    monkeypatch.setattr(os, "open", closed(os.open))
    monkeypatch.setattr(os, "mkdir", closed(os.mkdir))
    fig, _ = ti.plots.figure()
    prompts, norms = some_prompts([5]), {"n": ti.geometry.TokenNorms()}
    for name, write in {
        "a": lambda path: files.write_text(path, "x"),
        "b": files.new_folder,
        "c.png": lambda path: ti.plots.save(fig, path),
        "d": lambda path: claim(path, {}),
        "e": lambda path: ti.measure(tiny(), prompts, norms, store=path, progress=False),
        "f": lambda path: ti.measure_nulls(tiny(), prompts, norms, ["none"], store=path, progress=False),
    }.items():
        with pytest.raises(OSError, match=rf"Read-only file system.*/{name}|{name}.*Read-only file") as caught:
            write(tmp_path / name)
        assert "/." not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = files.write_text(tmp_path / "a.txt", "old\n")

    def fail():
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    same = torch.zeros(2)
    with pytest.raises(RuntimeError, match="share memory"):
        files.write_tensors(path, {"a": same, "b": same})
    assert path.read_bytes() == b"old\n"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert files.write_text(path, "\ud800é", errors="backslashreplace").read_bytes() == "\\ud800é".encode()


def test_a_full_disk_is_an_oserror(tmp_path, monkeypatch):
    def full(*args):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        files.write_tensors(tmp_path / "a", {"a": torch.zeros(1)})
    assert os.listdir(tmp_path) == []


def test_tensors_of_any_layout_and_their_notes(tmp_path):
    table = torch.arange(6.0).view(2, 3)
    path = files.write_tensors(tmp_path / "a.safetensors", {"t": table.T, "g": table.requires_grad_()}, {"k": "v"})
    assert torch.equal(load_file(path)["t"], table.T)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"k": "v"}


def test_a_new_folder_is_beside_the_place(tmp_path):
    one, two = files.new_folder(tmp_path / "run.zarr"), files.new_folder(tmp_path / "run.zarr")
    assert one != two
    assert one.parent == two.parent == tmp_path
    assert one.name.startswith(".run.zarr.writing-")


@posix
@pytest.mark.slow
def test_every_writer_keeps_to_the_umask(tmp_path, umask, bundled):
    """A group that shares a folder can read and go on with what each of it wrote."""
    umask(0o002)
    prompts = ti.Prompts.from_texts([t.text[:200] for t in ti.bundled_texts("story")[:4]], bundled, progress=False)
    probes = ti.erasure.fit_probes(
        bundled, prompts, layers=[1], offsets=[0], method="ridge", store=tmp_path / "probes", progress=False
    )
    probes.save(tmp_path / "copy")
    asked = {"lens": ti.lens.LogitLens(layers=[2])}
    ti.measure(bundled, prompts, asked, store=tmp_path / "half.zarr", share=(0, 2), progress=False)
    run = ti.measure(bundled, prompts, {"lens": ti.lens.LogitLens(layers=[2])}, progress=False)
    ti.write(run, tmp_path / "run.zarr")
    ti.write(run, tmp_path / "run.nc")
    ti.lens.TunedLens.identity(bundled.info).save(tmp_path / "lens.safetensors")
    ti.report(run, tmp_path / "page.html")
    made = {p: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert {p.suffix for p in made} >= {".safetensors", ".json", ".nc", ".html", ".zarr", ".partial"}
    wrong = {p: oct(mode) for p, mode in made.items() if mode != (0o775 if p.is_dir() else 0o664)}
    assert not wrong


@posix
def test_a_lock_of_another_user_can_be_taken(tmp_path, monkeypatch):
    (tmp_path / "lock").touch()
    real = os.open

    def only_read(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", only_read)
    os.close(open_lock(tmp_path / "lock"))
    monkeypatch.undo()
    (tmp_path / "link").symlink_to("lock")
    with pytest.raises(OSError, match="link"):
        open_lock(tmp_path / "link")


@pytest.mark.slow
def test_home_is_expanded_and_addresses_are_refused_wherever_a_path_is_taken(tmp_path, monkeypatch, bundled, tiny_run):
    from tokinterp import plots
    from tokinterp.behaviour.choices import read_mmlu
    from tokinterp.cli.fillers import read_items
    from tokinterp.fillers.tasks.training import load_networks
    from tokinterp.fitted import load_tensors
    from tokinterp.text import read_texts, readers

    monkeypatch.setenv("HOME", str(tmp_path))
    fig, _ = plots.figure()
    lens = ti.lens.TunedLens.identity(bundled.info)
    (tmp_path / "a.txt").write_text("The Nile flows north.")
    (tmp_path / "a.jsonl").write_text('{"text": "Nile", "spans": [], "prompt": "The", "answer": "Nile"}\n')
    (tmp_path / "choices").mkdir()
    (tmp_path / "choices" / "rivers_test.csv").write_text("Which river?,Nile,Rhine,A\n")
    calls = {
        "a.png": lambda path: plots.save(fig, path),
        "b.html": lambda path: ti.report(tiny_run, path),
        "lens.safetensors": lens.save,
        "c.bin": lambda path: files.write_bytes(path, b""),
    }
    for name, write in calls.items():
        assert write("~/" + name) == tmp_path / name
        assert (tmp_path / name).is_file()
    reads = {
        "a.txt": lambda path: list(read_texts(path)),
        "a.jsonl": readers.read_spans_jsonl,
        "a.jsonl#": lambda path: read_items(path.rstrip("#")),
        "choices": read_mmlu,
        "lens.safetensors": ti.lens.TunedLens.load,
    }
    for name, read in reads.items():
        assert read("~/" + name)
    for load in (
        *calls.values(), *reads.values(), ti.read, ti.erasure.TokenProbes.load, ti.linearity.LinearMaps.load,
        load_networks,
        lambda path: load_tensors(path, "", ""), ti.text.read_conll, ti.erasure.read_feucht2024, ti.load_model,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is a URL"):
            load("s3://bucket/a.jsonl")
