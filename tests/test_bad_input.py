"""Bad input: one line that names the value and the way out, and nothing half-written."""

import errno
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from tiny import Norms, byte_tokenizer, some_ids, some_prompts, tiny, tiny_lm
from torch import nn

import tokinterp as ti
from tokinterp.cli import main as cli
from tokinterp.run import checkpoint

S = ti.Site


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folder of a tiny model in two shards, with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "good"
    tiny_lm("llama").save_pretrained(folder, max_shard_size="60KB")
    byte_tokenizer().save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def spoiled(good, place, remove=(), **changes):
    """Return a copy of the model folder without some files, or with another config."""
    folder = place / "spoiled"
    shutil.copytree(good, folder)
    for pattern in remove:
        for file in list(folder.glob(pattern)):
            file.unlink()
    if changes:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def run(prompts=None, which=None, **options):
    prompts = some_prompts([12, 9]) if prompts is None else prompts
    return ti.measure(tiny(), prompts, {"norms": Norms()} if which is None else which, progress=False, **options)


class Untouched(nn.Module):
    """A causal LM of no known architecture."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(4, 4)])
        self.config = T.LlamaConfig(num_hidden_layers=1)

    def get_output_embeddings(self):
        return self.trunk[0]

    get_input_embeddings = get_output_embeddings


def lacking_a_tensor(good, place):
    folder = spoiled(good, place)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / index["model.layers.1.mlp.up_proj.weight"]
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    return ti.load_model(folder)


def truncated_chunk(place):
    store = place / "run.zarr"
    run(store=store)
    for chunk in (store / "norms" / "norm" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-9])
    return run(store=store)


def other_run(place):
    run(store=place / "run.zarr")
    return run(store=place / "run.zarr", which={"norms": Norms(layers=[1])})


def full_disk(place):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", full)
        return run(store=place / "run.zarr")


def unwritable(place):
    (place / "file").write_text("")
    return run(store=place / "file" / "run.zarr")


def latin(place):
    (place / "cafe.txt").write_bytes("un café".encode("latin-1"))
    return ti.Prompts.from_file(place / "cafe.txt", tiny())


def command(*arguments):
    """Run the command line; its one line on stderr becomes the error."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    raise ValueError(f"exit {stop.value.code}")


def text(place, words="the river"):
    (place / "one.txt").write_text(words)
    return place / "one.txt"


PROMPTS = {
    "empty text": (lambda g, p: run(["the river", ""]), r"text 1 is empty: leave it out"),
    "empty list": (lambda g, p: run([]), r"list of texts is empty: give at least one"),
    "one string": (lambda g, p: run("the river"), r"one string is not a list of texts.*\[text\]"),
    "no string": (lambda g, p: run(["the river", 3]), r"text 1 is int, not a string"),
    "empty ids": (lambda g, p: ti.Prompts.from_ids([], tiny()), r"list of prompts is empty: give at least one"),
    "no ids in a prompt": (
        lambda g, p: ti.Prompts.from_ids([[5], []], tiny()),
        r"prompt 1 .*give a list of at least one",
    ),
    "text longer than the context": (lambda g, p: run(["x" * 100]), r"text 0 has 101 tokens.*limit of 64.*max_tokens"),
    "ids longer than the context": (lambda g, p: some_prompts([65]), r"prompt 0 has 65 tokens.*context.*64: cut it"),
    "run of more than the context": (
        lambda g, p: tiny().run(some_ids(65), [S("resid", 0)]),
        r"prompt of 65 tokens: .* context of 64; truncate or",
    ),
    "ids out of vocabulary": (
        lambda g, p: ti.Prompts.from_ids([[1, 320]], tiny()),
        r"token id 320 at position 1.*ids 0 to 319: .*another tokenizer",
    ),
    "negative ids": (
        lambda g, p: tiny().run(torch.tensor([[1, -1]]), [S("resid", 0)]),
        r"token id -1 is out of vocabulary.*0 to 319",
    ),
    "left padding": (
        lambda g, p: tiny().run(some_ids(2, 1), [S("resid", 0)], mask=torch.tensor([[False, True]])),
        r"mask is not right padded: real tokens first",
    ),
    "not UTF-8": (lambda g, p: latin(p), r"cafe.txt: byte 6 .* is not UTF-8: give the encoding"),
    "no such file": (lambda g, p: ti.Prompts.from_file(p / "none.txt", tiny()), r"none.txt: no such file"),
}
ASKED = {
    "layer out of range": (lambda g, p: run(which={"n": Norms(layers=[4])}), r"layers=\[4\]: .*has layers 0 .* to 3"),
    "negative layer": (
        lambda g, p: run(which={"n": Norms(layers=[-1])}),
        r"layers=\[-1\].*negative numbers do not count",
    ),
    "unknown site": (lambda g, p: S.parse("hidden.3"), r"name='hidden': give one of 'resid', "),
    "unknown measurement": (
        lambda g, p: run(which={"n": "lense"}),
        r"'n' is a str, not a measurement: write for example",
    ),
    "no measurement": (lambda g, p: run(which=[]), r"no measurement: give a dictionary such as"),
    "k larger than the cloud": (
        lambda g, p: run(which={"d": ti.geometry.IntrinsicDimension(scales=(2,), k=50)}),
        r"2 of 2 prompts have fewer than .*k=50 needs.*k up to",
    ),
}
STORES = {
    "disk full": (lambda g, p: full_disk(p), r"cannot write the store .*No space left on device; choose another place"),
    "unwritable store": (
        lambda g, p: unwritable(p),
        r"^store='.*file/run.zarr': .*file is a file, not a folder; choose another place",
    ),
    "store of another run": (lambda g, p: other_run(p), r"differs in: measurements \(norms\).*Choose another store"),
    "truncated zarr chunk": (lambda g, p: truncated_chunk(p), r"norms/norm.* is damaged, .*: copy the store anew"),
    "result that is not there": (lambda g, p: ti.read(p / "none.zarr"), r"no result at .*none.zarr"),
}
MODELS = {
    "unknown architecture": (
        lambda g, p: ti.wrap(Untouched()),
        r"architecture Untouched: .*looked|modules=tokinterp.Modules",
    ),
    "encoder-decoder": (
        lambda g, p: ti.load_model(spoiled(g, p, model_type="t5", is_encoder_decoder=True, architectures=None)),
        r"spoiled is an encoder-decoder model \(t5\): tokinterp measures decoder-only",
    ),
    "wrapped encoder-decoder": (
        lambda g, p: ti.wrap(
            T.T5ForConditionalGeneration(
                T.T5Config(
                    vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
                )
            )
        ),
        r"is an encoder-decoder model \(t5\)",
    ),
    "no causal model": (
        lambda g, p: ti.load_model(spoiled(g, p, model_type="vit", architectures=None)),
        r"ViTConfig is no causal language model",
    ),
    "no tokenizer": (
        lambda g, p: ti.load_model(spoiled(g, p, ["*token*"])),
        r"has no tokenizer: looked for tokenizer.json.*tokenizer=",
    ),
    "missing shard": (
        lambda g, p: ti.load_model(spoiled(g, p, ["model-00002*"])),
        r"lacks model-00002-of-\d+.safetensors.*copy the missing shards",
    ),
    "missing tensor": (
        lambda g, p: lacking_a_tensor(g, p),
        r"lacks model.layers.1.mlp.up_proj.weight.*would be random: get",
    ),
    "no weights": (
        lambda g, p: ti.load_model(spoiled(g, p, ["*.safetensors", "*.index.json"])),
        r"has no weights: looked for \*.safetensors",
    ),
    "no config": (
        lambda g, p: ti.load_model(spoiled(g, p, ["config.json"])),
        r"has no config.json: is it a Hugging Face",
    ),
    "no such folder": (
        lambda g, p: ti.load_model(p / "none"),
        r"^name_or_folder=.*none': there is no such folder: give a folder with config.json",
    ),
    "no such name": (
        lambda g, p: ti.load_model("nobody/nothing"),
        r"^name_or_folder='nobody/nothing': cannot load it: it is no local folder",
    ),
    "device that does not exist": (
        lambda g, p: ti.load_model(g, device="cuda:99"),
        r"^device='cuda:99' does not exist.*device='cpu'",
    ),
    "no device": (lambda g, p: ti.load_model(g, device="gpu"), r"device='gpu': give a device such as 'cpu', 'cuda'"),
    "meta device": (lambda g, p: ti.load_model(g, device="meta"), r"^device='meta' holds no numbers: use"),
    "no dtype": (
        lambda g, p: ti.load_model(g, dtype="int8"),
        r"^dtype='int8' is no floating-point dtype: write 'float32'",
    ),
    "unknown backend": (lambda g, p: ti.load_model(g, backend="jax"), r"backend='jax': give one of 'hf', "),
    "text without a tokenizer": (
        lambda g, p: ti.measure(ti.wrap(tiny_lm()), ["x"], {"n": Norms()}),
        r"has no tokenizer: give ids with Prompts.from_ids",
    ),
}
CASES = {**PROMPTS, **ASKED, **STORES, **MODELS}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_bad_input_is_one_clear_line(case, good, tmp_path):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError, OSError, IndexError)) as caught:
        call(good, tmp_path)
    said = str(caught.value)
    assert re.search(message, said), said
    assert "\n" not in said, "more than one line"
    assert len(said) < 700, said
    left = [p.name for p in tmp_path.iterdir()]
    assert not [n for n in left if n.endswith(".partial") or ".writing" in n], left


def test_nothing_is_written_by_a_refused_run(tmp_path):
    for options in (
        {"which": {"n": Norms(layers=[9])}},
        {"which": {"n": ti.geometry.IntrinsicDimension(scales=(2,), k=50)}},
        {"edits": [ti.edits.zero(S("resid", 9))]},
    ):
        with pytest.raises(ValueError, match=r"9|50"):
            run(store=tmp_path / "run.zarr", **options)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_are_named(tmp_path):
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="broken gives NaN or infinite logits in float32: load it with dtype"):
        ti.wrap(lm, id="broken")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "{good}", "{text}", "-m", "lense", "-o", "{store}"], "lense.*dimension.*lens|unknown measurement"),
        (["measure", "{good}", "{none}", "-m", "lens", "-o", "{store}"], "none.txt"),
        (["measure", "{none}", "{text}", "-m", "lens", "-o", "{store}"], "none.txt"),
        (["measure", "{good}", "{text}", "-m", "lens", "--device", "cuda:99", "-o", "{store}"], "cuda:99"),
        (["show", "{store}"], "no result at"),
    ],
)
def test_command_line_says_it_in_one_line(arguments, message, good, tmp_path, capsys):
    names = {"good": good, "text": text(tmp_path), "none": tmp_path / "none.txt", "store": tmp_path / "run.zarr"}
    with pytest.raises(SystemExit) as stop:
        cli.main([a.format(**names) for a in arguments])
    assert stop.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Loading weights" not in line]
    assert re.search(message, lines[-1]), lines
    assert not [line for line in lines if "Traceback" in line]
    assert [p.name for p in tmp_path.iterdir()] == ["one.txt"]


def test_checks_come_before_the_model_is_loaded(good, monkeypatch):
    monkeypatch.setattr(T.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    for options in (
        {"device": "cuda:99"},
        {"dtype": "int8"},
        {"backend": "jax"},
        {"device": "cpu", "device_map": "auto"},
    ):
        with pytest.raises(ValueError, match=r"cuda:99|int8|jax|exclude each other"):
            ti.load_model(good, **options)


def test_one_bad_prompt_among_many_is_numbered():
    with pytest.raises(ValueError, match=r"prompt 2 has token id 999"):
        ti.Prompts.from_ids([[1], [2], [3, 999], [4]], tiny())
    with pytest.raises(ValueError, match=r"text 3 is empty"):
        ti.Prompts.from_texts(["a", "b", "c", ""], tiny())
    assert ti.Prompts.from_ids([np.array([1, 2])], tiny()).lengths == [2]


@pytest.mark.parametrize(
    ("library", "call", "message"),
    [
        ("nnsight.modeling.transformers", lambda g, p: ti.load_model(g, backend="nnsight"), r"tokinterp\[nnsight\]"),
        (
            "transformer_lens.model_bridge",
            lambda g, p: ti.load_model(g, backend="transformer_lens"),
            r"tokinterp\[transformer-lens\]",
        ),
        ("h5netcdf", lambda g, p: ti.write(run(), p / "run.nc"), r"tokinterp\[netcdf\]"),
    ],
)
def test_missing_library_says_what_to_install(library, call, message, good, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library.split(".")[0], None)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(T.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ImportError, match=f"pip install '{message}'"):
        call(good, tmp_path)
    assert list(tmp_path.iterdir()) == []
