"""The tuned lens: the identity is the logit lens, the closed form is least squares, training lowers the divergence."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from contract import assert_contract
from golden import belrose2023
from tiny import byte_tokenizer, some_prompts, tiny

import tokinterp as ti
from tokinterp.lens.fit import _final, _kl
from tokinterp.lens.tuned_lens import TunedLens
from tokinterp.models import wrap

torch.set_num_threads(1)
AUTHORS = json.loads((ROOT / "tests" / "golden" / "belrose2023.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prompts():
    return some_prompts([60] * 8)


@pytest.fixture(scope="module")
def start(prompts):
    return ti.lens.fit_tuned_lens(tiny(), prompts, steps=0, ridge=0, progress=False)


def lens_of(lens, prompts, model=None, variants=("normed", "tuned")):
    asked = {"m": ti.lens.LogitLens(variants=variants, tuned=lens, top=2)}
    return ti.measure(model or tiny(), prompts, asked, progress=False).children["m"].to_dataset(inherit=False)


def test_identity_translators_are_the_logit_lens(prompts):
    ds = lens_of(TunedLens.identity(tiny().info), prompts)
    for name in ("cross_entropy", "kl", "entropy", "agreement", "token_kl", "token_confidence"):
        np.testing.assert_allclose(ds[name].sel(variant="tuned"), ds[name].sel(variant="normed"), atol=1e-5)


def test_the_last_layer_has_no_translator(start, prompts):
    ds = lens_of(start, prompts)
    assert start.layers == [0, 1, 2]
    assert float(ds["kl"].sel(layer=3).max()) == 0
    with pytest.raises(ValueError, match="the last, 3, needs none"):
        TunedLens.identity(tiny().info, [3])


def test_files(start, tmp_path):
    again = TunedLens.load(start.save(tmp_path / "lens.safetensors"))
    assert (again.digest, again.facts) == (start.digest, start.facts)
    with pytest.raises(ValueError, match="tuned lens of another model: fitted on tiny-llama"):
        lens_of(again, some_prompts([20]), model=tiny("gpt2"))
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no tuned lens"):
        TunedLens.load(tmp_path / "other.safetensors")


def test_published_checkpoints_load(start, tmp_path):
    """Format of tuned-lens: a ModuleList of torch.nn.Linear, layer i on hidden_states[i], h + linear(h)."""
    layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
    torch.save(layers.state_dict(), tmp_path / "params.pt")
    config = {"base_model_name_or_path": "tiny-llama", "d_model": 32, "num_hidden_layers": 3, "bias": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lens = TunedLens.load(tmp_path)
    x = torch.randn(4, 32)
    for i in range(3):
        torch.testing.assert_close(lens.translate(x, i), x + layers[i](x))
    assert torch.equal(lens.translate(x, 3), x)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="a published tuned lens has 4 layers"):
        TunedLens.load(tmp_path)
    with pytest.raises(ValueError, match="no config"):
        TunedLens.load(tmp_path.parent)


def test_a_lens_that_does_not_fit_is_refused(start, prompts):
    only = ti.lens.fit_tuned_lens(tiny(), prompts, layers=[2], steps=0, progress=False)
    with pytest.raises(ValueError, match=r"no translator of layers \[0, 1\]"):
        lens_of(only, prompts)
    with pytest.raises(ValueError, match="go together"):
        ti.lens.LogitLens(tuned=start)
    with pytest.raises(ValueError, match="steps=-1"):
        ti.lens.fit_tuned_lens(tiny(), prompts, steps=-1)
    with pytest.raises(ValueError, match="exclude"):
        ti.lens.fit_tuned_lens(tiny(), prompts, exclude=("bos",))


def test_contract(start):
    assert_contract(lambda: ti.lens.LogitLens(variants=("raw", "tuned"), tuned=start, top=0))


def test_confidence_is_that_of_the_most_probable_token(prompts):
    ds = lens_of(None, prompts, variants=("raw", "normed"))
    np.testing.assert_allclose(np.exp(-ds["token_confidence"]), ds["top_prob"].isel(rank=0), rtol=1e-4)


def test_divergences_are_those_of_the_last_layer_from_the_lens():
    model, prompts = tiny(), some_prompts([40, 30, 35])
    lens = ti.lens.fit_tuned_lens(model, prompts, layers=[1, 2], steps=0, check_tokens=10**6, progress=False)
    batch = ti.capture(model, prompts, [0, 1, 2], ti.resid([1, 2, 3]))
    final = model.unembed(batch.rows(3)).log_softmax(-1)
    for layer in (1, 2):
        for name, x in (("kl_identity", batch.rows(layer)), ("kl_start", lens.translate(batch.rows(layer), layer))):
            own = model.unembed(x).log_softmax(-1)
            wanted = float((final.exp() * (final - own)).sum(-1).mean())
            assert lens.facts["history"][str(layer)][name] == pytest.approx(wanted, rel=1e-3), name


def test_translators_add_the_map_and_the_bias_of_their_layer():
    draw = torch.Generator().manual_seed(0)
    lens = TunedLens.identity(tiny().info, [1, 2])
    lens.weight, lens.bias = torch.randn(2, 32, 32, generator=draw), torch.randn(2, 32, generator=draw)
    x = torch.randn(5, 32, generator=draw)
    for i, layer in enumerate((1, 2)):
        torch.testing.assert_close(lens.translate(x, layer), x + x @ lens.weight[i].T + lens.bias[i])
    assert torch.equal(lens.translate(x, 3), x)


def test_training_that_made_it_worse_is_not_kept():
    model, prompts, options = tiny(), some_prompts([40, 30, 35]), {"layers": [1], "progress": False}
    start = ti.lens.fit_tuned_lens(model, prompts, steps=0, **options)
    worse = ti.lens.fit_tuned_lens(model, prompts, steps=2, lr=30.0, **options)
    found = worse.facts["history"]["1"]
    assert found["kl_trained"] > found["kl_start"]
    assert torch.equal(worse.weight, start.weight)
    assert torch.equal(worse.bias, start.bias)


# -- the authors' lens on the same network --------------------------------------------------------------------
@pytest.fixture(scope="module")
def seeded():
    """The network of the recipe, its prompts, and its stream at every layer."""
    model = wrap(belrose2023.network(), byte_tokenizer(), id="seeded")
    prompts = ti.Prompts.from_ids([*belrose2023.ids()], model)
    return model, prompts, ti.capture(model, prompts, range(len(prompts)), ti.resid(range(belrose2023.BLOCKS + 1)))


def lens_like(name, model):
    """Our lens with the translators of the authors' one: as theirs begins, or set to the numbers of the seed."""
    lens = TunedLens.identity(model.info)
    if name == "set":
        lens.weight, lens.bias = (torch.from_numpy(x).float() for x in belrose2023.translators())
    return lens


def test_translators_begin_as_the_authors_do(seeded):
    lens = TunedLens.identity(seeded[0].info)
    assert {f"{i}.{n}" for i in lens.layers for n in ("weight", "bias")} == set(AUTHORS["begin"]["parameters"])
    assert (
        {*AUTHORS["begin"]["parameters"].values()} == {0.0} == {*lens.weight.unique().tolist(), *lens.bias.tolist()[0]}
    )


@pytest.mark.parametrize("name", ["begin", "set"])
def test_logits_are_those_of_the_authors_lens(name, seeded):
    model, _, batch = seeded
    lens = lens_like(name, model)
    prompt, position = zip(*belrose2023.SHOWN, strict=True)
    for layer in lens.layers:
        points = batch.resid(layer)[list(prompt), list(position)]
        found = model.unembed(lens.translate(points, layer))
        torch.testing.assert_close(found, torch.tensor(AUTHORS[name]["logits"][layer]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["begin", "set"])
def test_divergence_and_its_slopes_are_those_the_authors_train_with(name, seeded):
    model, prompts, batch = seeded
    lens, wanted = lens_like(name, model), AUTHORS[name]
    ds = lens_of(lens, prompts, model, ("tuned",))
    per_token = ds["token_kl"].sel(variant="tuned", layer=lens.layers).mean("token")
    np.testing.assert_allclose(per_token, wanted["kl"], rtol=1e-5)
    for i in range(len(lens.layers)):
        own = [lens.weight[i].clone().requires_grad_(), lens.bias[i].clone().requires_grad_()]
        kl = _kl(lens, batch, _final(batch), i, *own)
        assert float(kl.detach()) == pytest.approx(wanted["kl"][i], rel=1e-5)
        for slope, theirs in zip(torch.autograd.grad(kl, own), ("weight", "bias"), strict=True):
            torch.testing.assert_close(slope, torch.tensor(wanted[f"{theirs}_gradient"][i]), rtol=1e-3, atol=2e-6)
