"""Nothing that was received is executed: stores, probes, unfinished runs, model folders, and what they name."""

import json
import os
import pickle
import shutil
import subprocess
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import xarray as xr
from numcodecs import zstd
from safetensors.torch import save_file

import tokinterp as ti
from tokinterp.cli import main as cli
from tokinterp.cli import options as cli_options
from tokinterp.cli import vocabulary
from tokinterp.files import received
from tokinterp.fitted import save_tensors
from tokinterp.models.bundled import bundled_folder
from tokinterp.run.checkpoint import KIND, STATE, Checkpoint
from tokinterp.run.facts import claim
from tokinterp.run.loop import Progress, take_up
from tokinterp.text import Prompts

TEXTS = [t.text[:200] for t in ti.bundled_texts("story")[:4]]
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ARRAY = {
    "zarr_format": 3, "node_type": "array", "shape": [2], "data_type": "float64", "fill_value": 0, "codecs": [BYTES],
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}}, "attributes": {},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "dimension_names": ["prompt"],
}  # fmt: skip


class Runs:
    """Makes the file ``ran`` when it is unpickled."""

    def __init__(self, folder):
        self.call = f"touch {folder}/ran"

    def __reduce__(self):
        return os.system, (self.call,)


def store(folder, payload=b"", **changes):
    """A store of format 3 with one array, by hand."""
    path = folder / "run.zarr"
    (path / "x" / "c").mkdir(parents=True)
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    (path / "x" / "zarr.json").write_text(json.dumps({**ARRAY, **changes}))
    (path / "x" / "c" / "0").write_bytes(payload or np.zeros(2).tobytes())
    return path


def test_the_store_made_by_hand_passes(tmp_path):
    received.check_zarr(store(tmp_path))


@pytest.mark.parametrize("name", [".zgroup", ".zarray", ".zattrs", ".zmetadata"])
@pytest.mark.parametrize("place", ["", "x", "x/c"])
def test_zarr_format_2_is_refused_wherever_it_is(tmp_path, name, place):
    path = store(tmp_path)
    (path / place / name).write_text("{}")
    with pytest.raises(ValueError, match="zarr format 2, which can run code"):
        ti.read(path)


@pytest.mark.parametrize("meta", [{"filters": [{"id": "pickle"}]}, {"dtype": "|O", "filters": [{"id": "pickle"}]}])
def test_a_pickle_filter_does_not_run(tmp_path, meta):
    (path := tmp_path / "run.zarr").mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    base = {"zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "<f8", "order": "C", "fill_value": 0}
    (path / "x").mkdir()
    (path / "x" / ".zarray").write_text(json.dumps({**base, "compressor": None, **meta}))
    (path / "x" / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["prompt"]}')
    (path / "x" / "0").write_bytes(pickle.dumps(Runs(tmp_path)))
    with pytest.raises(ValueError, match="format 2"):
        ti.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codecs": [BYTES, {"name": "numcodecs.pickle", "configuration": {}}]}, "codec 'numcodecs.pickle'"),
        ({"codecs": [{"name": "sharding_indexed"}]}, "codec 'sharding_indexed'"),
        ({"codecs": [{"id": "pickle"}]}, "damaged"),
        ({"codecs": [{"name": ["pickle"]}]}, "codec"),
        ({"codecs": [BYTES, {"name": "zstd"}, {"name": "zstd"}]}, "another kind"),
        ({"codecs": [{"name": "vlen-utf8"}]}, "another kind"),
        ({"data_type": "variable_length_bytes"}, "type 'variable_length_bytes'"),
        ({"data_type": {"name": "numpy.datetime64"}}, "values of type"),
        ({"zarr_format": 2}, "no metadata of zarr format 3"),
        ({"node_type": "table"}, "another kind"),
        ({"storage_transformers": [{"name": "x"}]}, "another kind"),
        ({"shape": [2**50]}, "more values than this machine has memory"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**50]}}}, "more values than"),
        ({"shape": [-1]}, "another kind"),
        ({"shape": 3}, "damaged"),
    ],
)
def test_other_codecs_types_and_sizes_are_refused_before_anything_is_opened(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(xr, "open_datatree", None)
    with pytest.raises(ValueError, match=message):
        ti.read(store(tmp_path, pickle.dumps(Runs(tmp_path)), **changes))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("payload", "kind", "message"),
    [
        (zstd.compress(bytes(2**24), 0), "float64", "unpacks to 16777216 bytes, but a chunk of its array has 16"),
        (zstd.compress(bytes(8), 0), "float64", "unpacks to 8 bytes"),
        (zstd.compress(bytes(16), 0) + zstd.compress(bytes(2**24), 0), "float64", "does not say what it unpacks to"),
        (bytes.fromhex("28b52ffd0058810000610000"), "float64", "does not say what it unpacks to"),
        (zstd.compress(bytes(16), 0)[:-1], "float64", "does not say what it unpacks to"),
        (b"no frame", "float64", "does not say what it unpacks to"),
        (zstd.compress(bytes(2**28 + 2**14), 0), "string", "far more than 2 strings take"),
    ],
)
def test_a_chunk_unpacks_to_what_its_array_says(tmp_path, monkeypatch, payload, kind, message):
    first = BYTES if kind == "float64" else {"name": "vlen-utf8"}
    packed = {"codecs": [first, {"name": "zstd", "configuration": {"level": 0}}], "data_type": kind}
    path = store(tmp_path, zstd.compress(bytes(16), 0), **packed)
    received.check_zarr(path)
    (path / "x" / "c" / "0").write_bytes(payload)
    monkeypatch.setattr(xr, "open_datatree", None)
    with pytest.raises(ValueError, match=f"0 .*{message}"):
        ti.read(path)


def test_chunks_of_strings_count_towards_the_memory(tmp_path, monkeypatch):
    path = store(tmp_path, bytes(2**16), codecs=[{"name": "vlen-utf8"}], data_type="string")
    received.check_zarr(path)
    monkeypatch.setattr(received, "memory_bytes", lambda: 2**16)
    with pytest.raises(ValueError, match="more values than this machine has memory for"):
        received.check_zarr(path)


@pytest.mark.parametrize("size", [1, 255, 256, 65_791, 65_792, 2**18])
@pytest.mark.parametrize("noise", [False, True])
def test_what_a_frame_says_is_read(size, noise):
    data = np.random.default_rng(0).bytes(size) if noise else bytes(size)
    assert received.zstd_size(zstd.compress(data, 0)) == size


def test_links_to_folders_and_devices_are_refused(tmp_path):
    path = store(tmp_path)
    (path / "y").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="y is a link to a folder"):
        ti.read(path)
    (path / "y").unlink()
    os.mkfifo(path / "x" / "c" / "1")
    with pytest.raises(ValueError, match="1 is no plain file"):
        ti.read(path)


def netcdf(change):
    def made(folder):
        import h5py

        with h5py.File(folder / "run.nc", "w") as file:
            change(file, folder)
        return folder / "run.nc"

    return made


def external(file, folder):
    file.create_dataset("x", (2,), "f8", external=[(str(folder / "private"), 0, 16)])


def virtual(file, folder):
    import h5py

    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (2,))
    file.create_virtual_dataset("x", layout)


def link(file, folder):
    import h5py

    file["x"] = h5py.ExternalLink(str(folder / "other.h5"), "/x")


def cycle(file, folder):
    file.create_group("a")["b"] = file["/"]


def opaque(file, folder):
    file["x"] = np.zeros(2, "V8")


def huge(file, folder):
    file.create_dataset("x", (2**50,), "f8", chunks=(1024,))


def plugin(file, folder):
    file.create_dataset("x", (4,), "f8", chunks=(4,), compression="lzf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "in other files"), (virtual, "in other files"), (link, "x is a link"), (opaque, "values of type"),
        (cycle, "under two names"), (huge, "more values than"), (plugin, "no built-in"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)  # fmt: skip
def test_netcdf_that_leads_elsewhere_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ti.read(netcdf(change)(tmp_path))


def write_record(folder, mark="", **changes):
    """Write a step with a right digest that somebody made."""
    notes = asdict(replace(Progress(), **changes))
    save_tensors(folder / STATE, {"norms/x": torch.zeros(1)}, KIND, {"notes": notes, "fit": mark})


@pytest.mark.parametrize("name", ["../victim", "/elsewhere/victim", "a/b", "..", "", "a\\b", "C:x"])
def test_an_unfinished_run_names_files_of_its_own_folder_only(tmp_path, name):
    keep = Checkpoint(tmp_path / "run.zarr", {})
    keep.folder.mkdir(parents=True)
    write_record(keep.folder, keep.mark, rows={name: ""})
    with pytest.raises(ValueError, match=r"not the name of a file in it"):
        take_up(keep, {"norms": ti.geometry.TokenNorms()}, "cpu", with_rows=True)


def test_a_file_named_by_an_unfinished_run_is_not_deleted(tmp_path, bundled):
    from tokinterp.run.engine import run_facts

    victim = tmp_path / "victim.safetensors"
    save_file({"norms/x": torch.zeros(1)}, victim)
    prompts = Prompts.from_texts(TEXTS[:2], bundled, progress=False)
    asked = {"norms": ti.geometry.TokenNorms(tokens=0)}
    facts = run_facts(bundled, prompts, asked, ())
    keep = Checkpoint(tmp_path / "run.zarr", facts)
    claim(keep.partial, facts)
    write_record(keep.folder, keep.mark, batch_tokens=100, rows={str(victim): ""})
    with pytest.raises(ValueError, match=r"not the name of a file in it"):
        ti.measure(bundled, prompts, asked, store=tmp_path / "run.zarr", progress=False)
    assert victim.exists()


def test_layers_of_probes_are_numbers(tmp_path, bundled):
    prompts = Prompts.from_texts(TEXTS[:4], bundled, max_tokens=20, progress=False)
    ti.erasure.fit_probes(
        bundled, prompts, layers=[1], offsets=[0], method="ridge", store=tmp_path / "p", progress=False
    )
    facts = json.loads((tmp_path / "p" / "probes.json").read_text())
    (tmp_path / "p" / "probes.json").write_text(json.dumps({**facts, "layers": ["../../victim"]}))
    with pytest.raises(ValueError, match="p is damaged"):
        ti.erasure.TokenProbes.load(tmp_path / "p")


# -- models -------------------------------------------------------------------------------------------------------
def copy(tmp_path):
    return shutil.copytree(bundled_folder(), tmp_path / "model")


def code(tmp_path, **config):
    """The bundled tokenizer with a class of its own, whose module makes the file ``ran``."""
    folder = copy(tmp_path)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, **config})
    )
    (folder / "own.py").write_text(f"import os\nos.system('touch {tmp_path}/ran')\n")
    return folder


def test_code_of_a_tokenizer_runs_only_if_the_command_line_says_so(tmp_path, capsys):
    folder = code(tmp_path)
    tree = xr.DataTree()
    tree.attrs = {"prompts": "x", "command": json.dumps({
        "model": str(folder), "revision": None, "trust_remote_code": True, "texts": "bundled",
        "prompts": {**dict.fromkeys((*cli_options.READING, *cli_options.CUTTING)), "max_tokens": 64},
    })}  # fmt: skip
    with pytest.raises(ValueError, match=r"no result can allow: if you trust it, give --model .*--trust-remote-code"):
        vocabulary.prompts_of(tree)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SystemExit) as end:
        cli.main(["vocabulary", str(tmp_path), "--trust-remote-code"])
    assert end.value.code == 2
    assert "name the model whose code may run with --model" in capsys.readouterr().err


def test_a_damaged_command_is_said(tmp_path):
    tree = xr.DataTree()
    for command in ("{", "[]", '{"model": "x"}', '{"model": "x", "revision": null, "texts": "t", "prompts": 3}'):
        tree.attrs = {"command": command}
        with pytest.raises(ValueError, match="attribute command is damaged"):
            vocabulary.prompts_of(tree)


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_model_folder_does_not_run(tmp_path, known):
    folder = code(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    (folder / "config.json").write_text(json.dumps(config if known else {**config, "model_type": "own"}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        ti.load_model(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_pickled_weights_do_not_run(tmp_path, form):
    folder = copy(tmp_path)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    if form == "zip":
        torch.save({"x": Runs(tmp_path)}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(tmp_path), protocol=2))
    with pytest.raises(ValueError, match=r"model: the weights are damaged or more than tensors .UnpicklingError"):
        ti.load_model(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_shards_lie_in_the_folder(tmp_path):
    folder = copy(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(ValueError, match="not the name of a file in it"):
        ti.load_model(folder, device="cpu")


def test_published_lenses_and_probes_are_read_as_tensors_only(tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1}')
    torch.save({"0.weight": Runs(tmp_path)}, tmp_path / "params.pt")
    torch.save(Runs(tmp_path), tmp_path / "layer1_tgtidx0.ckpt")
    with pytest.raises(ValueError, match=r"params.pt holds more than tensors, or is damaged"):
        ti.lens.TunedLens.load(tmp_path)
    with pytest.raises(ValueError, match=r"ckpt holds more than tensors, or is damaged"):
        ti.erasure.read_feucht2024(tmp_path / "layer1_tgtidx0.ckpt")
    assert not (tmp_path / "ran").exists()


def test_the_pickle_of_these_tests_does_run(tmp_path):
    pickle.loads(pickle.dumps(Runs(tmp_path)))
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    subprocess.run(["python3", code(tmp_path) / "own.py"], check=True)
    assert (tmp_path / "ran").exists()
