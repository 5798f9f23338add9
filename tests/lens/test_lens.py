"""The logit lens equals what softmax over all logits says, at any block size and in any batches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import StandIn, partitions
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.kernels import lens
from tokinterp.lens.lens import LogitLens

torch.set_num_threads(1)


def logits(rows, vocab, seed=0, scale=3.0):
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


# -- kernels --------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 99), st.floats(0.01, 20), st.floats(-500, 500))
def test_values_are_those_of_the_whole_distribution(rows, vocab, seed, scale, shift):
    last, early = logits(rows, vocab, seed, scale), logits(rows, vocab, seed + 100, scale) + shift
    target = torch.from_numpy(np.random.default_rng(seed).integers(0, vocab, rows))
    p, q = last.double().log_softmax(1), early.double().log_softmax(1)
    own, final, _ = lens.read_logits(last.clone(), target)
    found, none, _ = lens.read_logits(early.clone(), target, final)
    assert none is None
    tolerance = 1e-5 * (1 + scale + abs(shift) / 10)
    for one, logp, z in ((own, p, last), (found, q, early)):
        np.testing.assert_allclose(one.cross_entropy, F.cross_entropy(logp, target, reduction="none"), atol=tolerance)
        np.testing.assert_allclose(one.entropy, -(logp.exp() * logp).sum(1), atol=tolerance)
        assert torch.equal(one.accuracy, z.argmax(1) == target)
    np.testing.assert_allclose(found.kl, F.kl_div(q, p, log_target=True, reduction="none").sum(1), atol=tolerance)
    assert torch.equal(found.agreement, early.argmax(1) == last.argmax(1))
    assert bool((found.kl >= 0).all())
    assert float(own.kl.abs().max()) == 0
    assert bool(own.agreement.all())


def test_kl_of_the_same_logits_is_zero_without_being_told():
    z = logits(50, 1000)
    target = torch.zeros(50, dtype=torch.int64)
    _, final, _ = lens.read_logits(z.clone(), target)
    again, _, _ = lens.read_logits(z + 7, target, final)
    assert float(again.kl.max()) < 1e-5


def test_uniform_logits_have_entropy_log_v():
    one, _, _ = lens.read_logits(torch.full((2, 512), 3.0), torch.tensor([0, -1]))
    np.testing.assert_allclose(one.entropy, np.log(512), rtol=1e-7)
    np.testing.assert_allclose(one.cross_entropy, [np.log(512), np.nan], rtol=1e-7)
    assert one.accuracy.tolist() == [True, False]  # every token is most probable


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 99))
def test_ranks_and_top_tokens_agree_with_a_full_sort(rows, vocab, seed):
    z = logits(rows, vocab, seed)
    order = z.argsort(1, descending=True)
    for r in (0, vocab // 2, vocab - 1):
        assert (lens.target_rank(z, order[:, r]) == r).all()
    assert (lens.target_rank(z, torch.full((rows,), -1)) == -1).all()
    k = min(4, vocab)
    ids, prob = lens.top_tokens(z, z.logsumexp(1), k)
    assert torch.equal(ids, order[:, :k])
    np.testing.assert_allclose(prob, z.softmax(1).gather(1, order[:, :k]), rtol=1e-5)


@pytest.mark.parametrize("last", [True, False])
def test_a_block_read_in_strips_is_the_block_read_at_once(last, monkeypatch):
    z, target, some = logits(7, 300), torch.tensor([0, 299, -1, 5, 6, 7, 8]), torch.tensor([1, 2, 6])
    final = None if last else lens.read_logits(logits(7, 300, seed=1), target)[1]
    whole = lens.read_logits(z.clone(), target, final, some, 3)
    monkeypatch.setattr(lens, "STRIP", 600)  # two rows, and one at the end
    parts = lens.read_logits(z.clone(), target, final, some, 3)
    for a, b in zip(
        (*whole[0], *(whole[1] or ()), *whole[2].values()),
        (*parts[0], *(parts[1] or ()), *parts[2].values()),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(whole[2]["target_rank"], lens.target_rank(z, target)[some])
    assert torch.equal(whole[2]["top_id"], z.topk(3).indices[some])
    assert (whole[1] is not None) == last


@pytest.mark.parametrize("vocab", [31, 64 * 6, 64 * 6 + 17])
def test_top_tokens_are_those_of_a_sort_wherever_they_stand(vocab):
    z = logits(200, vocab)
    z[0, -3:] = torch.tensor([50.0, 60.0, 40.0])  # in what is left over
    z[1, :: vocab // 3][:3] = 50.0 + torch.arange(3.0)  # some in one column
    ids, _ = lens.top_tokens(z, z.logsumexp(1), 3)
    assert torch.equal(ids, z.argsort(1, descending=True)[:, :3])


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_first_and_stable_layer(rows):
    first, stable = lens.first_and_stable(torch.tensor(rows))
    for k, row in enumerate(rows):
        assert int(first[k]) == (row.index(True) if True in row else 5)
        assert int(stable[k]) == next(i for i in range(6) if all(row[i:]))


# -- the measurement ------------------------------------------------------------------------------------------
def brute_force(model, variant, prompt, layer):
    """Log-probabilities (position, vocab) of one prompt at one layer."""
    x = torch.from_numpy(model.streams[prompt][layer]).float().to(model.device)
    normed = variant == "normed" or layer == model.n_layers
    return model.head(model.normed(x) if normed else x).double().log_softmax(1).cpu()


def test_everything_equals_brute_force(device):
    model = StandIn(device=device)
    ds = model.measured(LogitLens(top=3, variants=("raw", "normed"))).result()
    for p, n in enumerate(model.lengths):
        target = torch.from_numpy(model.ids[p][1:])
        final = brute_force(model, "normed", p, 3)
        for variant in ("raw", "normed"):
            here = ds.sel(prompt=p, variant=variant)
            rows = ds.sel(variant=variant).isel(token=(ds["token_prompt"] == p).values)
            agree = np.zeros((n, 4), bool)
            for layer in range(4):
                logp = brute_force(model, variant, p, layer)
                cross = -logp[:-1].gather(1, target[:, None])[:, 0]
                kl = (final.exp() * (final - logp)).sum(1)
                entropy = -(logp.exp() * logp).sum(1)
                agree[:, layer] = logp.argmax(1) == final.argmax(1)
                one, row = here.sel(layer=layer), rows.sel(layer=layer)
                for name, value in (("cross_entropy", cross), ("kl", kl[:-1]), ("entropy", entropy[:-1])):
                    np.testing.assert_allclose(one[name], value.mean(), atol=1e-5, err_msg=f"{name} {layer}")
                np.testing.assert_allclose(row["token_cross_entropy"], np.append(cross, np.nan), atol=1e-5)
                np.testing.assert_allclose(row["token_kl"], kl, atol=1e-5)
                np.testing.assert_allclose(row["token_entropy"], entropy, atol=1e-5)
                assert float(one["agreement"]) == pytest.approx(agree[:-1, layer].mean())
                assert float(one["accuracy"]) == pytest.approx((logp[:-1].argmax(1) == target).double().mean().item())
                order = logp.argsort(1, descending=True)
                np.testing.assert_array_equal(row["top_id"], order[:, :3])
                np.testing.assert_allclose(row["top_prob"], logp.exp().gather(1, order[:, :3]), atol=1e-6)
                rank = (order[:-1] == target[:, None]).int().argmax(1)
                np.testing.assert_array_equal(row["target_rank"], np.append(rank, -1))
            first = [list(a).index(True) for a in agree]
            np.testing.assert_array_equal(rows["token_first_layer"], first)
            stable = [min(i for i in range(4) if a[i:].all()) for a in agree]
            np.testing.assert_array_equal(rows["token_stable_layer"], stable)
            assert float(here["first_layer"]) == pytest.approx(np.mean(first[:-1]))
            assert int(here["n_targets"]) == n - 1
            np.testing.assert_array_equal(here["n_positions"], n - 1)
    np.testing.assert_array_equal(ds["token_id"], np.concatenate(model.ids))


def test_both_variants_are_the_models_logits_at_the_last_layer_and_differ_before():
    ds = StandIn().measured(LogitLens(variants=("raw", "normed"))).result()
    raw, normed = ds.sel(variant="raw"), ds.sel(variant="normed")
    for name in ("cross_entropy", "entropy", "kl", "token_entropy", "top_prob"):
        np.testing.assert_array_equal(raw[name].sel(layer=3), normed[name].sel(layer=3), err_msg=name)
        assert not np.allclose(raw[name].sel(layer=1), normed[name].sel(layer=1), equal_nan=True), name
    assert float(abs(ds["kl"].sel(layer=3)).max()) == 0


@settings(max_examples=12, deadline=None)
@given(partitions(5), st.integers(1, 20000))
@pytest.mark.slow
def test_any_batches_and_blocks_give_the_same_dataset(batches, memory):
    model = StandIn()
    whole = model.measured(LogitLens()).result()
    xr.testing.assert_allclose(
        model.measured(LogitLens(), batches, memory=memory * 16).result(), whole, rtol=1e-5, atol=1e-6
    )


def test_parts_merge_and_states_go_on():
    model = StandIn()
    whole = model.measured(LogitLens(), [[0, 3], [1, 2], [4]])
    part = model.measured(LogitLens(), [[1, 2], [4]])
    part.merge(model.measured(LogitLens(), [[0, 3]]))
    xr.testing.assert_identical(part.result(), whole.result())
    again = LogitLens()
    again.begin(model.info, model.prompts)
    again.load(model.measured(LogitLens(), [[0, 3], [1, 2]]).state())
    again.update(model.batch([4]))
    xr.testing.assert_identical(again.result(), whole.result())


def test_no_block_is_larger_than_the_memory_given():
    model = StandIn((30, 31, 7))
    model.measured(LogitLens(), memory=16 * 4 * 4 * model.vocab * 10)
    assert max(model.rows_seen) == 10
    assert sum(model.rows_seen) == 4 * 68  # each layer and token once


def test_last_layer_is_compared_with_even_where_it_is_not_asked_for():
    model = StandIn()
    ds = model.measured(LogitLens(layers=[1])).result()
    whole = model.measured(LogitLens()).result()
    assert ds["layer"].values.tolist() == [1]
    np.testing.assert_allclose(ds["kl"], whole["kl"].sel(layer=[1]))
    agrees = whole["top_id"].sel(layer=1, rank=0) == whole["top_id"].sel(layer=3, rank=0)
    np.testing.assert_array_equal(ds["token_first_layer"], np.where(agrees, 1, 3))


@pytest.mark.parametrize(("tokens", "kept"), [(None, [0, 1, 2, 3, 4]), (2, [0, 1]), (0, [])])
def test_single_tokens_are_kept_of_the_first_prompts(tokens, kept):
    model = StandIn()
    ds = model.measured(LogitLens(tokens=tokens), [[4, 2], [1, 3], [0]]).result()
    assert ds.sizes["prompt"] == 5
    if not kept:
        assert "token" not in ds.dims
    else:
        assert sorted(set(ds["token_prompt"].values.tolist())) == kept
        assert ds.sizes["token"] == sum(model.lengths[k] for k in kept)


def test_without_top_tokens_there_are_none():
    ds = StandIn().measured(LogitLens(top=0)).result()
    assert "rank" not in ds.dims
    assert "target_rank" in ds


def test_some_layers_have_the_values_of_a_run_over_all():
    model = StandIn(n_layers=6)
    whole = model.measured(LogitLens(variants=("raw", "normed"))).result()
    some = model.measured(LogitLens(layers=range(0, 7, 3), variants=("raw", "normed"))).result()
    assert some["layer"].values.tolist() == [0, 3, 6]
    for name in ("cross_entropy", "entropy", "kl", "agreement", "top_id", "token_kl", "target_rank"):
        np.testing.assert_array_equal(some[name], whole[name].sel(layer=[0, 3, 6]), err_msg=name)


def test_exclusions_leave_positions_out_of_the_means():
    model = StandIn()
    model.streams[0][2, 4] *= 100
    whole = model.measured(LogitLens()).result()
    ds = model.measured(LogitLens(exclude=("special", "massive"))).result()
    np.testing.assert_array_equal(ds["n_positions"].sel(prompt=0, variant="normed"), [7, 7, 6, 7])
    here = whole.isel(token=(whole["token_prompt"] == 0).values).sel(layer=2, variant="normed")
    left = [1, 2, 3, 5, 6, 7]
    for name in ("cross_entropy", "kl"):
        wanted = here[f"token_{name}"].values[left].mean()
        assert float(ds[name].sel(prompt=0, layer=2, variant="normed")) == pytest.approx(wanted, rel=1e-5)
    assert "special, massive" in ds["cross_entropy"].attrs["positions"]


def test_prompt_of_one_token_has_no_mean():
    model = StandIn((4, 1))
    ds = model.measured(LogitLens()).result()
    assert ds["n_targets"].values.tolist() == [3, 0]
    assert bool(ds["cross_entropy"].sel(prompt=1).isnull().all())
    assert bool(ds["first_layer"].sel(prompt=1).isnull().all())
    with pytest.raises(ValueError, match="no next token"):
        LogitLens().begin(model.info, StandIn((1, 1)).prompts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": ("mean",)}, r"variants=[(]'mean',"),
        ({"variants": ("tuned",)}, "go together"),
        ({"variants": ()}, "variants="),
        ({"variants": ("raw", "raw")}, "each once"),
        ({"top": -1}, "top=-1"),
        ({"tokens": -1}, "tokens=-1"),
        ({"exclude": "bos"}, r"exclude='bos': .*special"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LogitLens(**settings)


def test_what_the_model_lacks_is_refused_before_it_runs():
    model = StandIn()
    with pytest.raises(ValueError, match=r"layers=\[4\]"):
        LogitLens(layers=[4]).begin(model.info, model.prompts)
    with pytest.raises(ValueError, match="only 17 tokens"):
        LogitLens(top=18).begin(model.info, model.prompts)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_loss_at_the_last_layer_is_that_of_hugging_face(family, tmp_path):
    import transformers

    torch.manual_seed(0)
    common = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 31, "max_position_embeddings": 32, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.5,
    }  # fmt: skip
    if family == "llama":
        lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common)).eval()
    else:  # with a soft cap on the logits
        config = transformers.Gemma2Config(**common, head_dim=8, final_logit_softcapping=2.0)
        config._attn_implementation = "eager"
        lm = transformers.Gemma2ForCausalLM(config).eval()
    model = ti.wrap(lm)
    rng = np.random.default_rng(0)
    prompts = ti.Prompts.from_ids([[1, *rng.integers(3, 31, n)] for n in (20, 5, 11)], model)
    run = ti.measure(
        model, prompts, {"lens": LogitLens(variants=("raw", "normed"))}, store=tmp_path / "run.zarr", progress=False
    )
    ds = run["lens"].to_dataset().sel(layer=2)
    for k in range(3):
        ids = torch.from_numpy(np.asarray(prompts.ids(k), np.int64))[None]
        with torch.no_grad():
            loss = float(lm(ids, labels=ids).loss)
        np.testing.assert_allclose(ds["cross_entropy"].sel(prompt=k), loss, atol=1e-5)
    with torch.no_grad():
        logits = lm(ids).logits[0].float()
    rows = ds.isel(token=(ds["token_prompt"] == 2).values).sel(variant="normed")
    np.testing.assert_array_equal(rows["top_id"].isel(rank=0), logits.argmax(1))
    np.testing.assert_allclose(rows["top_prob"].isel(rank=0), logits.softmax(1).amax(1), atol=1e-5)


def test_first_layers_are_among_some_layers_and_the_last():
    model, prompts = tiny(), some_prompts([9, 12])
    run = ti.measure(model, prompts, {"m": ti.lens.LogitLens(layers=[2], top=1)}, progress=False)
    whole = ti.measure(model, prompts, {"m": ti.lens.LogitLens(layers=[2, 3], top=1)}, progress=False)["m"]
    agree = (whole["top_id"].sel(layer=2) == whole["top_id"].sel(layer=3)).values[:, 0, 0]
    np.testing.assert_array_equal(run["m"]["token_first_layer"].values[:, 0], np.where(agree, 2, 3))
    assert 0 < agree.mean() < 1
