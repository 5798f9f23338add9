"""One pass: the result does not depend on batches, order or shares; what is not finite is named and left out."""

import importlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import xarray as xr
from standin import StandIn
from stored_runs import LENGTHS, assert_same, measured, measurements
from tiny import Norms, Spread, byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.run.measurement import Measurement
from tokinterp.run.stream import nonfinite_layer

measure_module = importlib.import_module("tokinterp.run.engine")  # the name is that of the function, too
S = ti.Site


@pytest.fixture(scope="module")
def whole():
    return measured()


# -- what comes out -------------------------------------------------------------------------------------------
def test_result_is_labelled_and_complete(whole):
    ti.check(whole)
    prompts = some_prompts(LENGTHS)
    assert list(whole.children) == ["prompts", *measurements()]
    assert whole["prompts"]["n_tokens"].values.tolist() == LENGTHS
    assert (whole["prompts"]["first_nonfinite_layer"].values == -1).all()
    norms = whole["norms"].to_dataset()
    assert norms["prompt"].values.tolist() == np.repeat(range(7), LENGTHS).tolist()
    assert norms["token_id"].values.tolist() == prompts.token_ids.tolist()
    assert norms["text"].values.tolist() == [t for i in range(7) for t in prompts.strings(i)]
    assert norms["site"].values.tolist()[3] == "blocks.2.hook_resid_post"
    assert norms["relative_depth"].values.tolist() == [0, 1 / 3, 2 / 3, 1]
    for name, m in measurements().items():
        attrs = whole[name].attrs
        assert json.loads(attrs["parameters"]) == m.settings()
        assert attrs["measurement"] == type(m).__name__
        assert attrs["fingerprint"] == whole.attrs["fingerprint"]
        assert attrs["prompts"] == prompts.hash


def test_sums_and_rows_are_those_of_the_model(whole):
    prompts = some_prompts(LENGTHS)
    rows = []
    for i in range(7):
        ids = torch.from_numpy(prompts.ids(i).astype(np.int64))[None]
        acts = tiny().run(ids, ti.resid(range(4)))
        rows.append(torch.stack([acts[S("resid", n)][0].double() for n in range(4)], 1))
    stream = torch.cat(rows)
    np.testing.assert_allclose(whole["norms"]["norm"], stream.norm(dim=-1), rtol=1e-5)
    np.testing.assert_allclose(whole["norms"]["mean_norm"], stream.mean(0).norm(dim=-1), rtol=1e-5)
    last = stream[:, 3]
    np.testing.assert_allclose(whole["spread"]["variance"], last.var(0, correction=0).sum(), rtol=1e-5)


def test_texts_are_turned_into_prompts():
    run = measured(["the river", "and to the river in the end"], which={"norms": Norms()})
    assert run["norms"]["text"].values[0] == "<s>"
    assert run["norms"].attrs["model"] == "tiny-llama"


def test_edits_take_part_and_are_recorded(whole):
    edit = ti.edits.zero(S("resid", 2))
    run = measured(which={"norms": Norms()}, edits=[edit])
    assert not run["norms"]["norm"].sel(layer=2).values.any()
    np.testing.assert_allclose(run["norms"]["norm"].sel(layer=1), whole["norms"]["norm"].sel(layer=1), rtol=1e-5)
    assert json.loads(run.attrs["facts"])["edits"] == json.loads(json.dumps([edit.describe()]))
    plain = measured(which={"norms": Norms()})
    assert run.attrs["fingerprint"] != plain.attrs["fingerprint"]


# -- invariance -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_tokens", [1, 45, 90, 10_000])
@pytest.mark.slow
def test_any_batch_size_gives_the_same_result(whole, batch_tokens):
    assert_same(measured(batch_tokens=batch_tokens), whole)


@pytest.mark.parametrize(("seed", "batch_tokens"), [(0, 1), (1, 57), (2, 10_000)])
def test_any_order_of_prompts_gives_the_same_result(whole, seed, batch_tokens):
    order = np.random.default_rng(seed).permutation(len(LENGTHS))
    moved = measured(some_prompts(LENGTHS)[order], batch_tokens=batch_tokens)
    for name in measurements():
        a, b = whole[name].to_dataset(), moved[name].to_dataset()
        if "prompt" in b.dims:
            b = b.assign_coords(prompt=order[b["prompt"].values]).sortby("prompt")
        if "token" in b.dims:
            number = order[b["token_prompt" if "token_prompt" in b.coords else "prompt"].values]
            b = b.isel(token=np.lexsort([b["position"].values, number]))
        for v in a.data_vars:
            np.testing.assert_allclose(a[v], b[v], rtol=2e-4, atol=2e-5, err_msg=f"{name} {v}")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.slow
def test_shares_merge_into_the_same_result(order, tmp_path, capsys):
    which = {k: m for k, m in measurements().items() if k in ("norms", "dimension", "lens")}
    store = tmp_path / "run.zarr"
    for n, i in enumerate(order):
        run = measured(which=which, store=store, share=(i, 3), batch_tokens=60)
        assert bool(run.children) == (n == 2), "an unfinished result was returned"
    assert f"share {order[0]} of 3 is finished; still to run: {sorted(order[1:])}" in capsys.readouterr().err
    expected = measured(which=which)
    assert_same(run, expected)
    assert_same(ti.read(store), run, exact=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    again = measured(which=which, store=store, share=(1, 3))
    assert_same(again, run, exact=True)


@pytest.mark.slow
def test_shares_that_end_at_the_same_time_merge_once(tmp_path, monkeypatch):
    """All four shares are finished before the first of them merges, and each could be the one to do it."""
    store = tmp_path / "run.zarr"
    together = threading.Barrier(4)
    merge, merged = measure_module._merge_shares, []

    def slowly(*args):
        merged.append(1)
        time.sleep(0.5)
        merge(*args)

    def all_at_once(*args):
        together.wait(60)
        return alone(*args)

    alone = measure_module.alone
    monkeypatch.setattr(measure_module, "alone", all_at_once)
    monkeypatch.setattr(measure_module, "_merge_shares", slowly)
    prompts = some_prompts([10] * 8)

    def work(i):
        model = ti.wrap(tiny_lm(), byte_tokenizer())
        return measured(prompts, model, {"norms": Norms()}, store=store, share=(i, 4))

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(work, range(4)))
    finished = [r for r in runs if r.children]
    assert finished
    assert len(merged) == 1
    expected = measured(prompts, which={"norms": Norms()})
    for run in finished:
        np.testing.assert_allclose(run["norms"]["norm"], expected["norms"]["norm"], rtol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


# -- refused before anything is run ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": [Norms()]}, r"no measurement: give a dictionary"),
        ({"which": {"norms": "Norms"}}, r"'norms' is a str, not a measurement"),
        ({"which": {"my norms": Norms()}}, r"measurement name 'my norms' becomes a group"),
        ({"which": {"prompts": Norms()}}, r"measurement name 'prompts'"),
        ({"which": {"_prompts": Norms()}}, r"measurement name '_prompts'"),
        ({"which": {"norms": Norms(layers=[4])}}, r"layers=\[4\]: tiny-llama has layers 0 .* to 3"),
        ({"share": (3, 3), "store": "x.zarr"}, r"share=\(3, 3\): give \(i, n\): whole numbers, i from 0 to n - 1"),
        ({"share": (0, 8), "store": "x.zarr"}, r"7 prompts make at most as many shares"),
        ({"share": (0, 2)}, r"shares need a store="),
        ({"share": (0, 2), "store": "x.zarr", "which": {"s": Spread()}}, r"Spread reads the prompts 2 times"),
        ({"batch_tokens": 0}, r"batch_tokens=0"),
        ({"edits": [ti.edits.zero(S("resid", 1), [30])]}, r"positions=\[30\] to edit: the longest prompt .* 0 to 29"),
        ({"edits": [ti.edits.zero(S("resid", 4))]}, r"layer 4: tiny-llama has layers 0 to 3"),
        ({"edits": [ti.edits.add(S("resid", 1), torch.zeros(5, 32))]}, r"shape \(5, 32\).*up to 30 positions"),
        ({"edits": [ti.edits.zero(S("resid", 1), torch.ones(1, 3, dtype=torch.bool))]}, r"fit one batch only"),
        ({"edits": [ti.edits.knock_out([1], heads=[9])]}, r"heads \[9\]"),
        ({"edits": ["zero"]}, r"edits=\['zero'\]: give a list, each a SiteEdit"),
        ({"prompts": []}, r"list of texts is empty"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_model_runs(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny()), "run", lambda *_, **__: pytest.fail("the model was run"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=message):
        measured(**{"which": {"norms": Norms()}, **options})
    assert list(tmp_path.iterdir()) == []


def test_sites_that_the_model_lacks_are_refused():
    class Mid(Norms):
        def sites(self, info):
            return [S("resid_mid", 0)]

    with pytest.raises(ValueError, match=r"mid: site resid_mid is not available for GPTNeoXForCausalLM.*in parallel"):
        measured(model=tiny("neox"), which={"mid": Mid()})


def test_failure_in_a_measurement_leaves_nothing_half_written(tmp_path):
    class Broken(Norms):
        def update(self, batch):
            if len(batch) > 1:
                raise RuntimeError("broken measurement")
            super().update(batch)

    with pytest.raises(RuntimeError, match="broken measurement"):
        measured(which={"norms": Broken()}, store=tmp_path / "a" / "run.zarr")
    assert list((tmp_path / "a").iterdir()) == []


def test_sums_are_float64_or_int64_whatever_comes_first():
    def added(*values):
        m = Measurement()
        for value in values:
            m.add("x", torch.as_tensor(value))
        return m.sums["x"]

    many = [torch.tensor(1000.0, dtype=torch.bfloat16), *[torch.tensor(1.0, dtype=torch.bfloat16)] * 1000]
    assert (float(added(*many)), added(*many).dtype) == (2000.0, torch.float64)
    assert float(added(torch.tensor(0), 0.9, 0.9)) == pytest.approx(1.8)
    assert float(added(0.9, torch.tensor(1), True)) == pytest.approx(2.9)
    assert added(torch.tensor(2**31 - 1, dtype=torch.int32), torch.tensor(1, dtype=torch.int32)) == 2**31
    assert added(True, True).dtype == torch.int64


# -- notes ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_notes_stand_in_the_result_and_decide_nothing(tmp_path):
    asked, store = {"norms": Norms()}, tmp_path / "run.zarr"
    run = measured(which=asked, store=store, notes={"texts": "articles of May"})
    assert run.attrs["texts"] == "articles of May"
    assert run.attrs["fingerprint"] == measured(which={"norms": Norms()}).attrs["fingerprint"]
    again = measured(which={"norms": Norms()}, store=store, notes={"texts": "of June"})
    assert again.attrs["texts"] == "articles of May"


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"weights": "others"}, "notes: 'weights' is provenance"),
        ({"facts": "{}"}, "notes: 'facts' is provenance"),
        ({"source_commits": "mine"}, "notes: 'source_commits' is provenance"),
        ({"n": 3}, "notes={'n': 3}: give names and texts"),
        ("texts", "notes='texts': give a dictionary"),
        ({"n": "\0"}, "NUL or lone surrogate in attribute 'n'"),
    ],
)
def test_notes_that_would_mislead_are_refused_before_the_run(notes, message, monkeypatch):
    monkeypatch.setattr("tokinterp.run.loop.Runner.run", lambda *_: pytest.fail("the run began"))
    with pytest.raises((ValueError, TypeError), match=message):
        measured(which={"norms": Norms()}, notes=notes)


def test_padding_that_is_not_finite_does_not_count():
    model = StandIn()
    batch = model.batch(range(3))
    for value in batch.activations.values():
        value[~batch.mask] = torch.inf
    assert nonfinite_layer(batch).tolist() == [-1, -1, -1]
    batch.resid(2)[1, 3] = torch.nan
    assert nonfinite_layer(batch).tolist() == [-1, 2, -1]
    inside = model.batch(range(2))
    inside.activations = {ti.Site("mlp_out", 1): inside.resid(0).clone()}  # between layers 1 and 2
    inside.activations[ti.Site("mlp_out", 1)][0, 2] = torch.nan
    assert nonfinite_layer(inside).tolist() == [2, -1]


def test_strings_of_tokens_are_those_of_their_positions():
    prompts = ti.Prompts.from_texts(["the river and the sea", "to the north"], tiny())
    asked = {"m": ti.geometry.PooledStates(layers=[0], pooling="tokens")}  # without special tokens
    ds = ti.measure(tiny(), prompts, asked, progress=False)["m"]
    place = zip(ds["token_prompt"].values.tolist(), ds["position"].values.tolist(), strict=True)
    assert ds["text"].values.tolist() == [prompts.strings(p)[k] for p, k in place]


def test_memory_decides_no_number_and_no_fingerprint():
    model, prompts = tiny(), some_prompts([40, 30, 35])
    asked = {
        "dimension": ti.geometry.IntrinsicDimension((2, 4), k=4), "overlap": ti.geometry.NeighbourOverlap((1, 3)),
        "graph": ti.geometry.NeighbourGraph((2,)), "imbalance": ti.geometry.InformationImbalance((1, 2)),
        "cosine": ti.geometry.CosineSimilarity(), "lens": ti.lens.LogitLens(),
    }  # fmt: skip
    plenty, little = (ti.measure(model, prompts, asked, memory=m, progress=False) for m in (2**33, 5000))
    assert plenty.attrs["fingerprint"] == little.attrs["fingerprint"]
    for name in asked:
        xr.testing.assert_allclose(plenty[name].to_dataset(), little[name].to_dataset(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="or raise memory=5000 of the run"):
        ti.measure(model, prompts, {"e": ti.geometry.MatrixEntropy()}, memory=5000, progress=False)
    whole = {"whole": ti.Condition(prompts)}
    with pytest.raises(ValueError, match="or raise memory=5000 of the run"):
        ti.measure_conditions(model, whole, {"e": ti.geometry.MatrixEntropy()}, memory=5000, progress=False)
    with pytest.raises(ValueError, match="memory=0: give a whole number of at least 1"):
        ti.measure(model, prompts, asked, memory=0)
