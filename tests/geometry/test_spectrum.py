"""Spectrum equals the covariance of the whole data, with and without the rows that dominate it."""

from itertools import permutations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from standin import StandIn, partitions

import tokinterp as ti
from tokinterp.geometry.kernels import spectrum
from tokinterp.geometry.spectrum import Spectrum
from tokinterp.kernels import massive
from tokinterp.kernels.moments import Central

torch.set_num_threads(1)
LAYER = 2


def with_sink(factor=400.0, offset=1000.0, lengths=(19, 11, 30, 24, 8), **kwargs):
    """A stand-in whose special token is massive in layers 1 and 2, and whose channel 3 has an offset everywhere."""
    model = StandIn(lengths, d=6, **kwargs)
    for stream in model.streams:
        stream[:, :, 3] += offset
        stream[1:3, 0] = 0
        stream[1:3, 0, 4] = factor * (1 + offset) / 10
    return model


def reference(x):
    """Numbers of a spectrum from the whole rows in float64."""
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    p, s = values / values.sum(), np.sqrt(values) / np.sqrt(values).sum()
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (u @ u.T)[~np.eye(len(x), dtype=bool)].mean()
    return {
        "eigenvalue": values, "anisotropy": p[0], "participation_ratio": 1 / (p**2).sum(),
        "total_variance": values.sum(), "effective_rank": np.exp(-(s * np.log(s)).sum()),
        "effective_rank_variance": np.exp(-(p * np.log(p)).sum()),
        "pca_components": [(p.cumsum() < t).sum() + 1 for t in (0.9, 0.95, 0.99)],
        "mean_cosine": cosine, "mean_norm": np.linalg.norm(x, axis=1).mean(), "n": len(x),
        "rank_limit": min(len(x) - 1, x.shape[1]),
    }  # fmt: skip


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_both_subsets_equal_the_whole_data(offset, device):
    model = with_sink(offset=offset, device=device)
    ds = model.measured(Spectrum(), [[2, 3], [0], [1, 4]]).result()
    for layer in range(4):
        x = model.rows(layer).astype(np.float32).astype(np.float64)
        first = np.concatenate([np.arange(n) == 0 for n in model.lengths])
        for subset, rows in (("all", x), ("regular", x[~first])):
            here = ds.sel(layer=layer, subset=subset)
            for name, value in reference(rows).items():
                np.testing.assert_allclose(here[name], value, rtol=2e-5, atol=2e-6, err_msg=f"{layer} {subset} {name}")


def test_directions_beyond_the_possible_rank_are_no_variance():
    values = spectrum.eigenvalues(torch.eye(6, dtype=torch.float64), torch.tensor(3))
    assert values.tolist() == [0.5, 0.5, 0, 0, 0, 0]  # three rows span two directions
    assert spectrum.eigenvalues(torch.eye(6, dtype=torch.float64), torch.tensor(3), noise=0.5).tolist() == [0] * 6


def test_unbiased_traces_are_averages_over_four_different_rows():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([3.0, 1, 0.5])
    y = x - x.mean(0)
    cloud = Central(torch.tensor(6), x.mean(0), y.T @ y, y.square().sum(1).square().sum())
    above, below = zip(
        *(
            ((a - b).square().sum() * (c - d).square().sum() / 4, ((a - b) @ (c - d)) ** 2 / 4)
            for a, b, c, d in permutations(x, 4)
        ),
        strict=True,
    )
    for found, wanted in zip(spectrum.unbiased_traces(cloud), (above, below), strict=True):
        assert float(found) == pytest.approx(float(torch.stack(wanted).mean()))


def test_kaiser_compares_with_the_mean_over_the_possible_rank():
    values = torch.tensor([4.0, 2.0, 1.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert float(spectrum.kaiser(values, 3)) == 1  # above 2.5
    assert float(spectrum.kaiser(values, 6)) == 3  # above 1.25
    assert float(spectrum.broken_stick(values, 3)) == 0  # shares .53, .27, .2; pieces .61, .28, .11
    assert float(spectrum.broken_stick(values, 6)) == 3  # pieces .41, .24, .16


def test_massive_row_ruins_the_spectrum_and_leaving_it_out_restores_it():
    clean = StandIn((64,) * 16, d=96, n_layers=1, seed=3)
    dirty = StandIn((64,) * 16, d=96, n_layers=1, seed=3)
    for k, model in enumerate((clean, dirty)):
        for stream in model.streams:
            stream[:, 0] = 0
            stream[1, 0, 7] = 600.0 * k
    a, b = (
        m.measured(Spectrum(exclude=("massive",) if k else ("special",))).result() for k, m in enumerate((clean, dirty))
    )
    assert float(b["anisotropy"].sel(layer=1, subset="all")) > 0.9
    assert float(b["participation_ratio"].sel(layer=1, subset="all")) < 1.3
    for name in ("anisotropy", "participation_ratio_unbiased", "effective_rank", "mean_cosine", "n"):
        restored, wanted = (d[name].sel(layer=1, subset="regular") for d in (b, a))
        np.testing.assert_allclose(restored, wanted, rtol=1e-6, atol=1e-8, err_msg=name)


def equal(a: xr.Dataset, b: xr.Dataset):
    assert a.sizes == b.sizes
    for name, v in a.variables.items():
        if v.dtype.kind == "f":
            np.testing.assert_allclose(
                b[name],
                v,
                rtol=2e-5,
                atol=2e-5 * float(a["total_variance"].max()) * (name == "eigenvalue") + 2e-6,
                err_msg=name,
            )
        else:
            np.testing.assert_array_equal(b[name], v, err_msg=name)


@settings(max_examples=12, deadline=None)
@given(partitions(5))
@pytest.mark.slow
def test_any_batches_in_any_order_give_the_same_dataset(batches):
    model = with_sink()
    equal(model.measured(Spectrum()).result(), model.measured(Spectrum(), batches).result())


@settings(max_examples=8, deadline=None)
@given(partitions(5))
@pytest.mark.slow
def test_parts_merge_to_the_whole(batches):
    model = with_sink()
    first, *others = (model.measured(Spectrum(), [b]) for b in batches)
    for other in others:
        first.merge(other)
    equal(model.measured(Spectrum()).result(), first.result())


def test_merging_into_an_empty_one_takes_a_copy():
    model = with_sink()
    empty, full = Spectrum(), model.measured(Spectrum())
    empty.begin(model.info, model.prompts)
    empty.merge(full)
    empty.update(model.batch([0]))
    assert int(full.sums["count"].sum()) < int(empty.sums["count"].sum())


def test_other_settings_are_not_merged():
    model = with_sink()
    with pytest.raises(ValueError, match="settings must be equal"):
        model.measured(Spectrum()).merge(model.measured(Spectrum(components=2)))


def test_state_taken_up_goes_on_to_the_same_bits():
    model = with_sink()
    whole = model.measured(Spectrum(), [[0, 1], [2, 3], [4]]).result()
    half = model.measured(Spectrum(), [[0, 1]])
    again = Spectrum()
    again.begin(model.info, model.prompts)
    again.load(half.state())
    for numbers in ([2, 3], [4]):
        again.update(model.batch(numbers))
    xr.testing.assert_identical(again.result(), whole)


def test_prompt_cosines_are_those_of_all_pairs():
    model = with_sink(offset=3.0)
    ds = model.measured(Spectrum()).result()
    for p, stream in enumerate(model.streams):
        for subset, x in (("all", stream[LAYER]), ("regular", stream[LAYER, 1:])):
            off = ~np.eye(len(x), dtype=bool)
            here = ds.sel(prompt=p, layer=LAYER, subset=subset)
            for name, y in (("prompt_cosine", x), ("prompt_cosine_centred", x - x.mean(0))):
                u = y / np.linalg.norm(y, axis=1, keepdims=True)
                assert float(here[name]) == pytest.approx((u @ u.T)[off].mean(), abs=1e-5), name
            u = x / np.linalg.norm(x, axis=1, keepdims=True)
            assert float(here["prompt_cosine_diagonal"]) == pytest.approx((u @ u.T).mean(), abs=1e-5)
            assert float(here["prompt_norm"]) == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-5)
            assert int(here["prompt_n"]) == len(x)


def test_rows_equal_to_the_mean_of_their_prompt_have_no_centred_direction():
    model = StandIn((6, 6), d=4)
    model.streams[0][1] = [3.0, 1000.1, -0.7, 2.0]
    ds = model.measured(Spectrum(exclude=())).result().sel(layer=1, subset="all")
    assert float(ds["prompt_cosine"][0]) == pytest.approx(1, abs=1e-6)
    assert bool(ds["prompt_cosine_centred"].isnull()[0])


def test_rows_that_are_not_finite_are_counted_and_left_out():
    model = StandIn()
    clean = model.measured(Spectrum()).result()
    model.streams[2][LAYER, 5, 1] = np.nan
    model.streams[0][LAYER, 3] = np.inf
    ds = model.measured(Spectrum()).result()
    np.testing.assert_array_equal(ds["nonfinite_rows"], [0, 0, 2, 0])
    x = model.rows(LAYER)
    x = x[np.isfinite(x).all(1)]
    np.testing.assert_allclose(ds["anisotropy"].sel(layer=LAYER, subset="all"), reference(x)["anisotropy"], rtol=1e-5)
    assert int(ds["n"].sel(layer=LAYER, subset="all")) == len(x)
    xr.testing.assert_allclose(ds["anisotropy"].sel(layer=1), clean["anisotropy"].sel(layer=1))


def test_bfloat16_streams_are_summed_in_full_precision():
    model = with_sink(offset=0.0, dtype=torch.bfloat16)
    ds = model.measured(Spectrum(layers=[3])).result().sel(layer=3, subset="all")
    x = torch.from_numpy(model.rows(3)).to(torch.bfloat16).double().numpy()
    np.testing.assert_allclose(ds["eigenvalue"], reference(x)["eigenvalue"], rtol=1e-5)


def test_without_exclusions_there_is_one_subset():
    model = with_sink()
    m = model.measured(Spectrum(exclude=(), layers=[1], components=2))
    ds = m.result()
    assert ds["subset"].values.tolist() == ["all"]
    assert ds["eigenvalue"].shape == (1, 1, 2)
    assert m.sums["second"].shape == (1, 6, 6)


def test_rounding_beyond_the_possible_rank_does_not_count():
    model = StandIn((20,), d=64, n_layers=1)
    ds = model.measured(Spectrum(exclude=())).result().sel(layer=1, subset="all")
    x = model.streams[0][1]
    s = np.linalg.svd(x - x.mean(0))[1][:19]
    q = s / s.sum()
    assert int(ds["rank_limit"]) == 19
    np.testing.assert_array_equal(ds["eigenvalue"][19:], 0)
    assert float(ds["effective_rank"]) == pytest.approx(np.exp(-(q * np.log(q)).sum()), rel=1e-5)


# -- massive activations --------------------------------------------------------------------------------------
def planted(rows=40, d=32):
    x = torch.randn(2, rows, d, generator=torch.Generator().manual_seed(0))
    x[0, 0, 5], x[0, 7, 9], x[1, 3, 5] = -900.0, 950.0, 130.0
    mask = torch.ones(2, rows, dtype=torch.bool)
    mask[1, 30:] = False
    x[1, 30:] = 1e6  # padding
    return x, mask


def test_rules_find_the_planted_rows():
    x, mask = planted()
    assert massive.massive_rows(x, mask).nonzero().tolist() == [[0, 0], [0, 7], [1, 3]]
    assert massive.massive_rows(x, mask, "sun2024", sample=None).nonzero().tolist() == [[0, 0], [0, 7]]
    assert massive.massive_rows(x, mask, factor=1e3).nonzero().tolist() == []


def test_norm_rule_has_no_scale_and_the_published_one_has():
    x, mask = planted()
    small = x / 100
    assert torch.equal(massive.massive_rows(small, mask), massive.massive_rows(x, mask))
    assert not massive.massive_rows(small, mask, "sun2024").any()


def test_sampled_median_is_near_the_exact_one_and_does_not_see_padding():
    x, mask = planted(400, 64)
    exact, sampled = (massive.measure_sizes(x, mask, sample).median for sample in (None, 4096))
    np.testing.assert_allclose(exact[0], x[0].abs().median(), rtol=1e-6)
    np.testing.assert_allclose(sampled, exact, rtol=0.08)
    assert torch.equal(sampled[1:], massive.measure_sizes(x[1:, :30], mask[1:, :30]).median)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": ("bos",)}, r"exclude=\('bos',\): 'bos' is none of 'special', 'massive'"),
        ({"thresholds": (0.9, 1.0)}, "thresholds="),
        ({"components": 0}, "components=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(**settings)


def test_what_the_model_lacks_is_refused_before_it_runs():
    model = StandIn()
    with pytest.raises(ValueError, match=r"layers=\[4\]"):
        Spectrum(layers=[4]).begin(model.info, model.prompts)
    with pytest.raises(ValueError, match="only 8 channels"):
        Spectrum(components=9).begin(model.info, model.prompts)
    with pytest.raises(ValueError, match="seen no batch"):
        Spectrum().result()


@pytest.mark.slow
def test_in_one_pass_of_a_model_it_follows_the_conventions(tmp_path, tiny):
    prompts = ti.Prompts.from_ids([[1, 5, 6, 7, 9, 3], [1, 8, 9, 4]], tiny)
    run = ti.measure(tiny, prompts, {"spectrum": Spectrum()}, store=tmp_path / "run.zarr", progress=False)
    ds = run["spectrum"].to_dataset()
    x = np.concatenate([ti.capture(tiny, prompts, [n], ti.resid([1])).rows(1).numpy() for n in (0, 1)])
    assert float(ds["anisotropy"].sel(layer=1, subset="all")) == pytest.approx(
        np.linalg.svd(x - x.mean(0))[1][0] ** 2 / ((x - x.mean(0)) ** 2).sum(), rel=1e-5
    )


@pytest.fixture(scope="module")
def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=31,
        max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return ti.wrap(LlamaForCausalLM(config).eval())


def test_rows_of_length_zero_count_in_the_mean_norm_and_not_in_the_cosine():
    model = StandIn((9, 7))
    model.streams[0][1][3] = 0
    ds = model.measured(Spectrum(exclude=())).result().sel(subset="all", layer=1)
    x = np.concatenate([s[1] for s in model.streams])
    length = np.linalg.norm(x, axis=1)
    assert float(ds["mean_norm"]) == pytest.approx(length.mean(), rel=1e-5)
    unit = x[length > 0] / length[length > 0, None]
    pairs = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    assert float(ds["mean_cosine"]) == pytest.approx(pairs.mean(), abs=1e-6)
