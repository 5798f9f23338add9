"""Coverage of past segments by their separators."""

import numpy as np
import pytest
import torch
from tiny import tiny

import tokinterp as ti
from tokinterp.attention.coverage import (
    coverage,
    means,
    out_of_reach,
)
from tokinterp.attention.masks import separators_of

MARK = torch.tensor([[0, 0, 0, 1, 0, 1, 0, 0, 1, 0]], dtype=torch.bool)


ONES = torch.ones(1, 10, dtype=torch.bool)


@pytest.fixture(scope="module")
def prompts(bundled):
    return ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:6]], bundled, max_tokens=80)


def test_out_of_reach_is_what_it_says():
    segment = [0, 0, 0, 0, 1, 1, 2, 2, 2, 3]
    for window in (None, 1, 4):
        far = out_of_reach(MARK, ONES, window, 2)[0]
        for q in range(10):
            for k in range(10):
                away = segment[k] < segment[q] if window is None else q - k >= window
                assert bool(far[q, k]) == (away and k >= 2), (window, q, k)


def test_coverage_of_uniform_and_of_planted_attention():
    far = out_of_reach(MARK, ONES, None, 1)
    uniform = (torch.ones(10, 10).tril() / torch.arange(1, 11)[:, None])[None, None]
    able = far.any(-1).sum(-1)[:, None]
    _, share, chance, number = means(coverage(uniform, MARK, far), able)
    torch.testing.assert_close(share, chance)
    assert int(number) == 6
    on = torch.zeros(1, 2, 10, 10)
    on[..., 0] = 0.5
    on[0, 0, :, 3] = on[0, 1, :, 2] = 0.5  # one head on a separator, one beside it
    mass, share, chance, _ = means(coverage(on, MARK, far), able)
    assert share.tolist() == [[1.0, 0.0]]
    assert mass.tolist() == [[0.5, 0.5]]
    assert 0 < float(chance[0, 0]) < 1


def covered(model, prompts, batch_tokens=None, **settings):
    asked = {"coverage": ti.attention.SegmentCoverage(**settings)}
    return ti.measure(model, prompts, asked, batch_tokens=batch_tokens, progress=False)["coverage"].to_dataset()


@pytest.mark.slow
def test_coverage_of_a_model(bundled, prompts):
    ds = covered(bundled, prompts)
    ti.check(ds)
    assert ((ds["separator_share"] >= 0) & (ds["separator_share"] <= 1)).all()
    one = covered(bundled, prompts, batch_tokens=1)
    for name in ds.data_vars:
        np.testing.assert_allclose(one[name], ds[name], rtol=1e-3, atol=1e-4, err_msg=name)
    site = ti.Site("pattern", 1)
    ids = torch.from_numpy(np.asarray(prompts.ids(0)))[None]
    mark = torch.isin(ids, torch.tensor(separators_of(prompts)))
    a = bundled.run(ids, [site])[site][0, 2]
    far = out_of_reach(mark, torch.ones_like(mark), None, 1)[0]
    shares = [float(a[q][far[q] & mark[0]].sum() / a[q][far[q]].sum()) for q in range(len(a)) if far[q].any()]
    assert float(ds["separator_share"][0, 1, 2]) == pytest.approx(np.mean(shares), rel=1e-4)


def test_texts_in_which_nothing_is_out_of_reach_are_refused_before_the_run():
    model = tiny()
    for texts, settings in ((["One, two."], {"window": 500}), (["One, two."], {"initial": 9}), (["Onetwo."], {})):
        with pytest.raises(ValueError, match="no query has a key out of reach"):
            covered(model, ti.Prompts.from_texts(texts, model), **settings)
    assert int(covered(model, ti.Prompts.from_texts(["ab,d"], model))["n_queries"].max()) == 1
    with pytest.raises(ValueError, match="no separator"):
        covered(model, ti.Prompts.from_ids([np.full(12, 100)], model))


def test_coverage_is_that_of_a_loop(long_model, marked_texts):
    ds = covered(long_model, marked_texts)
    marks = separators_of(marked_texts)
    ids = np.asarray(marked_texts.ids(1))
    with torch.no_grad():
        a = (
            long_model.run(torch.as_tensor(ids)[None], [ti.Site("pattern", 1)])[ti.Site("pattern", 1)][0]
            .double()
            .numpy()
        )
    mark = np.isin(ids, marks)
    segment = np.cumsum(mark) - mark
    for head in range(a.shape[0]):
        mass, share, chance = [], [], []
        for q in range(len(ids)):
            far = [k for k in range(1, q + 1) if segment[k] < segment[q]]
            if far:
                mass.append(a[head, q, far].sum())
                share.append(a[head, q, [k for k in far if mark[k]]].sum() / mass[-1])
                chance.append(mark[far].mean())
        one = ds.isel(prompt=1, block=1, head=head)
        assert float(one["far_mass"]) == pytest.approx(np.mean(mass), rel=1e-5)
        assert float(one["separator_share"]) == pytest.approx(np.mean(share), rel=1e-5)
        assert float(one["chance"]) == pytest.approx(np.mean(chance))
        assert float(one["enrichment"]) == pytest.approx(np.mean(share) / np.mean(chance), rel=1e-5)
        assert int(one["n_queries"]) == len(share)
