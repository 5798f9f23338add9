"""The list of bad inputs: each a one-line error that names the value and the way out, with nothing half-written."""

import errno
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tokinterp as ti

TEXT = "The river and the town. " * 6


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ti.load_model(tiny_folder, device="cpu")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a model folder that a test may damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def refuse(call, *parts, kind=ValueError):
    """The call fails with a one-line message that has all the parts."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert "\n" not in message
    return message


# -- text ---------------------------------------------------------------------------------------------------------
def test_empty_text(model):
    refuse(lambda: ti.Prompts.from_texts(["one", ""], model), "text 1 is empty")


def test_empty_list(model):
    refuse(lambda: ti.Prompts.from_texts([], model), "list of texts is empty")
    refuse(lambda: ti.measure(model, [], {"lens": ti.LogitLens()}), "list of texts is empty")


def test_text_longer_than_the_context(model):
    n = model.info.max_tokens
    refuse(lambda: ti.Prompts.from_texts([TEXT * 100], model), "text 0", str(n), "max_tokens")
    refuse(lambda: model.run(torch.zeros(1, n + 1, dtype=torch.long), ti.resid([0])), str(n + 1), str(n), "max_tokens=")


def test_text_file_that_is_not_utf8(model, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("one café".encode("latin-1"))
    refuse(lambda: ti.Prompts.from_file(path, model), "latin.txt", "byte 7", "encoding=")


def test_ids_out_of_vocabulary(model):
    n = model.info.d_vocab
    refuse(lambda: ti.Prompts.from_ids([[1, n]], model), str(n), f"{n - 1}")
    refuse(lambda: model.run(torch.tensor([[1, n]]), ti.resid([0])), f"token id {n}", f"0 to {n - 1}", "tokenizer")
    refuse(lambda: model.run(torch.tensor([[1, -1]]), ti.resid([0])), "token id -1")


# -- models -------------------------------------------------------------------------------------------------------
def test_model_folder_without_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    refuse(lambda: ti.load_model(folder), "has no tokenizer", "tokenizer.json", "tokenizer=")


def test_model_folder_with_a_missing_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    message = refuse(lambda: ti.load_model(folder), "lacks model-00002-of-00002.safetensors", "missing shards")
    assert "00001" not in message


def test_model_folder_without_weights_or_config(folder):
    (folder / "model.safetensors").unlink()
    refuse(lambda: ti.load_model(folder), "has no weights", "*.safetensors")
    (folder / "config.json").unlink()
    refuse(lambda: ti.load_model(folder), "has no config.json")
    refuse(lambda: ti.load_model(folder / "nowhere"), "no model folder", "nowhere", "hub")


def test_weights_with_nan(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refuse(lambda: ti.load_model(folder), "NaN or infinite logits", "dtype=")


def test_encoder_decoder_model(tmp_path):
    config = transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, vocab_size=16)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    refuse(lambda: ti.load_model(tmp_path, tokenizer=object()), "encoder-decoder", "t5", "decoder-only")


def test_unknown_architecture():
    class Odd(torch.nn.Module):
        config = transformers.LlamaConfig(num_hidden_layers=1)

        def get_output_embeddings(self):
            return torch.nn.Linear(2, 2)

        def get_input_embeddings(self):
            return torch.nn.Embedding(2, 2)

    refuse(lambda: ti.wrap(Odd().eval()), "unknown architecture Odd", "model.layers", "modules=tokinterp.Modules")


@pytest.mark.parametrize("place", ["cuda:99", "gpu", "tpu:0"])
def test_device_that_does_not_exist(tiny_folder, place):
    refuse(lambda: ti.load_model(tiny_folder, device=place), place, "'cpu'")


def test_dtype_and_backend_that_do_not_exist(tiny_folder):
    refuse(lambda: ti.load_model(tiny_folder, dtype="int8"), "int8", "bfloat16")
    refuse(lambda: ti.load_model(tiny_folder, backend="jax"), "jax", "hf, transformer_lens, nnsight")


# -- sites, layers, measurements ----------------------------------------------------------------------------------
def test_layer_out_of_range(model):
    last = model.info.n_layers
    for make in (ti.LogitLens, ti.Spectrum, ti.IntrinsicDimension):
        asked = {"m": make(layers=[0, last + 1])}
        refuse(lambda asked=asked: ti.measure(model, [TEXT], asked), str(last + 1), str(last))
        asked = {"m": make(layers=[-1])}
        refuse(lambda asked=asked: ti.measure(model, [TEXT], asked), "-1")
    refuse(lambda: ti.capture(model, ti.Prompts.from_texts([TEXT], model), [0], ti.resid([last + 1])), str(last + 1))


def test_unknown_site():
    refuse(lambda: ti.Site("hidden", 0), "'hidden'", "resid, resid_mid, attn_out, mlp_out, pattern")


def test_unknown_measurement(model):
    refuse(lambda: ti.measure(model, [TEXT], {"lens": "lens"}), "'lens' is a str", "tokinterp.LogitLens()")
    refuse(lambda: ti.measure(model, [TEXT], {}), "no measurement", "tokinterp.LogitLens()")


def test_k_larger_than_the_cloud(model):
    prompts = ti.Prompts.from_texts([TEXT[:30]], model)
    n = prompts.lengths[0]
    refuse(lambda: ti.measure(model, prompts, {"d": ti.IntrinsicDimension(scales=(2,), k=n)}), str(n), "k")
    refuse(lambda: ti.measure(model, prompts, {"d": ti.IntrinsicDimension(scales=(2, 64), k=3)}), "64", "scales")


# -- stores -------------------------------------------------------------------------------------------------------
def test_store_of_another_run(model, tmp_path):
    store = tmp_path / "run.zarr"
    ti.measure(model, [TEXT], {"lens": ti.LogitLens(top=2)}, store=store, progress=False)
    other = {"lens": ti.LogitLens(top=3)}
    refuse(lambda: ti.measure(model, [TEXT], other, store=store, progress=False), "run.zarr", "measurements (lens)")
    refuse(lambda: ti.measure(model, [TEXT * 2], {"lens": ti.LogitLens(top=2)}, store=store), "prompts")
    assert not list(tmp_path.glob("*.partial"))


def test_unwritable_store(model, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    asked = {"lens": ti.LogitLens()}
    refuse(lambda: ti.measure(model, [TEXT], asked, store=file / "run.zarr"), "run.zarr", "another place", kind=OSError)
    assert list(tmp_path.iterdir()) == [file]


def test_disk_full(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tokinterp.checkpoint.save_file", full)
    asked = {"lens": ti.LogitLens()}
    call = lambda: ti.measure(model, [TEXT], asked, store=tmp_path / "run.zarr", progress=False)  # noqa: E731
    refuse(call, "No space left", "free some space", kind=OSError)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr("xarray.DataTree.to_zarr", full)
    refuse(call, "run.zarr", "free some space", kind=OSError)
    assert not (tmp_path / "run.zarr").exists()
    monkeypatch.undo()
    assert set(call().children) == {"prompts", "lens"}  # what was finished before is kept and used


def test_truncated_chunk(model, tmp_path):
    store = tmp_path / "run.zarr"
    ti.measure(model, [TEXT], {"lens": ti.LogitLens()}, store=store, progress=False)
    chunk = next(p for p in sorted((store / "lens" / "cross_entropy").rglob("*")) if p.is_file() and p.name != "zarr.json")
    data = chunk.read_bytes()
    chunk.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="run.zarr .*damaged"):
        ti.read(store)
    chunk.unlink()  # zarr itself would read a missing chunk as zeros or NaN
    refuse(lambda: ti.read(store), "run.zarr", "/lens/cross_entropy", "damaged")
