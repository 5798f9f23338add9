"""Rows that no text trained: the shipped model's known values, a loop over rows, planted rows, refusals."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import embedding_indicators, indicators


def untied(family="llama", **changes):
    return ti.wrap(tiny_lm(family, tie_word_embeddings=False, **changes), byte_tokenizer(), id="untied")


def by_hand(rows, unused):
    """The four comparisons of one row at a time, the axis from scikit-learn."""
    rows = rows.detach().double().numpy()
    axis = PCA(1, svd_solver="full").fit(rows).components_[0]
    kinds = {
        "eout_cos": rows,
        "eout_cos_centered": rows - rows.mean(0),
        "eout_cos_wo_pc1": rows - np.outer(rows @ axis, axis),
    }
    out = {
        n: [1 - x @ (u := r[unused].mean(0)) / max(np.linalg.norm(x) * np.linalg.norm(u), 1e-6) for x in r]
        for n, r in kinds.items()
    }
    return out | {"eout_l2": [np.linalg.norm(x - rows[unused].mean(0)) for x in rows]}


def test_the_bundled_model_has_the_known_values():
    ds = embedding_indicators(ti.load_model())
    value = ds["indicator_value"].sel(indicator="eout_cos").values
    assert ds.attrs["default_indicator"] == "eout_cos"
    assert ds.attrs["unused_ids"] == str([127, 128, *range(180, 191)])
    assert value.mean() == pytest.approx(0.514427, abs=1e-6)
    assert float(ds["sd"].sel(indicator="eout_cos")) == pytest.approx(0.201188, abs=1e-6)
    assert np.percentile(value, 2) == pytest.approx(0.097317, abs=1e-6)
    lowest = value.argsort()
    assert lowest[:3].tolist() == [2, 1611, 184]
    assert value[lowest[:3]] == pytest.approx([4.622e-5, 5.479e-4, 5.557e-4], rel=2e-4)
    assert {" charact", " toget"} <= set(ds["token"].values[lowest[:13]])
    assert int(ds["n_supertokens"][1611]) >= 1, "' proble' is a left-over of a longer token"


def test_values_are_those_of_a_loop_over_rows(monkeypatch):
    model = untied()
    unused = [4, 9, 200]
    whole = embedding_indicators(model, unused=unused)
    monkeypatch.setattr(indicators, "ROWS", 37)
    parts = embedding_indicators(model, unused=unused)
    expected = by_hand(model.lm.get_output_embeddings().weight, unused)
    expected["ein_l2"] = model.lm.get_input_embeddings().weight.detach().double().norm(dim=1).numpy()
    for ds in (whole, parts):
        assert set(ds["indicator"].values) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(ds["indicator_value"].sel(indicator=name), value, rtol=1e-9, atol=1e-12)
    assert whole.attrs["default_indicator"] == "ein_l2"
    assert not whole.attrs["tied"]


def test_planted_untrained_rows_are_the_candidates():
    model = untied()
    planted, known = [20, 50, 260, 270], [7, 8]
    with torch.no_grad():
        model.lm.get_input_embeddings().weight[planted] *= 1e-3
        head = model.lm.get_output_embeddings().weight
        head[[*planted, *known]] = head[7] + 1e-3 * head[[*planted, *known]]
    ds = embedding_indicators(model, unused=known, percentile=1.5)
    assert (ds["reachability"].values[planted] == "ok").all()
    for name in ("ein_l2", "eout_cos", "eout_l2"):
        found = np.flatnonzero(ds["is_candidate"].sel(indicator=name))
        assert len(found) > 0, name
        assert set(found.tolist()) <= {*planted, *known}, name
        value = ds["indicator_value"].sel(indicator=name).values
        others = np.setdiff1d(np.arange(320), [*planted, *known])
        assert value[planted].max() < 0.1 * value[others].min(), name


def test_candidates_can_be_written_and_lie_below_the_percentile_of_reachable_tokens():
    ds = embedding_indicators(ti.load_model(), percentile=5)
    ok = ds["reachability"].values == "ok"
    for name in ds["indicator"].values:
        value = ds["indicator_value"].sel(indicator=name).values
        threshold = np.percentile(value[ok], 5)
        assert float(ds["threshold"].sel(indicator=name)) == pytest.approx(threshold)
        expected = (value <= threshold) & (ds["reachability"].values != "undecodable")
        np.testing.assert_array_equal(ds["is_candidate"].sel(indicator=name), expected)
    assert bool(ds["is_candidate"].sel(vocab=2).any()), "a special token is a candidate too"


def test_a_head_with_a_bias_is_asked_for_it():
    plain, biased = untied("phi"), untied("phi")
    with torch.no_grad():
        plain.lm.lm_head.bias.zero_()
    assert "eout_bias" not in embedding_indicators(ti.wrap(plain.lm, byte_tokenizer(), id="a"))["indicator"].values
    ds = embedding_indicators(biased)
    np.testing.assert_array_equal(
        ds["indicator_value"].sel(indicator="eout_bias"), biased.lm.lm_head.bias.detach().double()
    )


def test_a_head_narrower_than_the_stream_is_read_in_its_own_width():
    model = ti.wrap(tiny_lm("opt_post_norm"), byte_tokenizer(), id="opt")
    assert model.lm.get_input_embeddings().weight.shape[1] == 16 != model.info.d_model
    ds = embedding_indicators(model)
    expected = by_hand(model.lm.get_output_embeddings().weight, [*map(int, ds.attrs["unused_ids"][1:-1].split(","))])
    np.testing.assert_allclose(ds["indicator_value"].sel(indicator="eout_l2"), expected["eout_l2"])


def test_without_unused_ids_only_norms_are_known(monkeypatch):
    monkeypatch.setattr(indicators, "NEVER", ())
    ds = embedding_indicators(untied())
    value = ds["indicator_value"]
    assert value.sel(indicator="ein_l2").notnull().all()
    assert value.sel(indicator=["eout_cos", "eout_cos_centered", "eout_cos_wo_pc1", "eout_l2"]).isnull().all()
    assert not ds["is_candidate"].sel(indicator="eout_cos").any()
    tied = ti.wrap(tiny_lm("llama", tie_word_embeddings=True), byte_tokenizer(), id="tied")
    with pytest.raises(ValueError, match=r"unused=None: embedding and head of tied are one matrix"):
        embedding_indicators(tied)


def test_what_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match=r"unused=320: untied has rows for 320 ids"):
        embedding_indicators(untied(), unused=[3, 320])
    with pytest.raises(ValueError, match="nothing has no tokenizer"):
        embedding_indicators(ti.wrap(tiny_lm("llama"), None, id="nothing"))


def test_supertokens_are_counted_once_each():
    assert indicators.n_supertokens([b"aa", b"a", b"aaa", b"", b"b", b"a"]).tolist() == [1, 2, 0, 0, 0, 2]
