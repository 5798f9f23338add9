"""Clouds of tokens: too small ones, and one search for all measurements."""

import numpy as np
import pytest
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry import clouds
from tokinterp.kernels.neighbours import nearest


def test_clouds_that_are_too_small():
    prompts = some_prompts([30, 12], model=tiny())
    for make in (ti.geometry.NeighbourOverlap, ti.geometry.NeighbourGraph, ti.geometry.InformationImbalance):
        with pytest.raises(ValueError, match=r"1 of 2 prompts have fewer than 22 tokens .*min_tokens=23"):
            ti.measure(tiny(), prompts, {"m": make(k=(5, 20))})
    asked = {
        "o": ti.geometry.NeighbourOverlap((5, 20), small="nan"), "g": ti.geometry.NeighbourGraph((5, 20), small="nan"),
        "i": ti.geometry.InformationImbalance((5, 20), small="nan"),
    }  # fmt: skip
    run = ti.measure(tiny(), prompts, asked, progress=False)
    wanted = [[True, True], [True, False]]
    for group, name in (("o", "overlap"), ("o", "chance"), ("g", "reciprocity"), ("i", "imbalance_forward")):
        v = run[group][name].notnull()
        v = v.all([d for d in v.dims if d not in ("prompt", "k")]) if v.ndim > 2 else v
        assert v.transpose("prompt", "k").values.tolist() == wanted, name
    assert bool(run["o"]["overlap_pair"].notnull().all())  # over the prompts that have it


# -- one search for all -------------------------------------------------------------------------------------------
@pytest.fixture
def searches(monkeypatch):
    """Number of clouds searched."""
    seen = []

    def counted(points, k, mask=None, **options):
        seen.append((len(points), k))
        return nearest(points, k, mask, **options)

    monkeypatch.setattr(clouds, "nearest", counted)
    return seen


def everything(**changes):
    return {
        "d": ti.geometry.IntrinsicDimension((2, 4), k=5, **changes), "o": ti.geometry.NeighbourOverlap((1, 3)),
        "g": ti.geometry.NeighbourGraph((2,), layers=[0, 2]), "i": ti.geometry.InformationImbalance((1,)),
        "c": ti.geometry.CosineSimilarity(),
    }  # fmt: skip


@pytest.mark.slow
def test_neighbours_are_searched_once_for_all_measurements(searches):
    prompts = some_prompts([30, 40, 35])
    together = ti.measure(tiny(), prompts, everything(), progress=False, batch_tokens=60)
    assert len(searches) == 3 * 4  # batches x layers
    assert {k for _, k in searches} == {5}
    for name, m in everything().items():
        alone = ti.measure(tiny(), prompts, {name: m}, progress=False, batch_tokens=60)
        for v in alone[name].data_vars:
            np.testing.assert_allclose(
                alone[name][v].values, together[name][v].values, rtol=1e-9, err_msg=f"{name} {v}", equal_nan=True
            )


def test_other_points_are_searched_apart_and_nothing_is_kept(searches):
    model = tiny()
    prompts = some_prompts([30])
    asked = list(everything(exclude=()).values())
    for m in asked:
        m.begin(model.info, prompts)
    sites = sorted({s for m in asked for s in m.sites(model.info)})
    batch = ti.capture(model, prompts, [0], sites)
    batch.requests = [w for m in asked for w in m.requests(model.info)]
    for m in asked:
        m.update(batch)
    assert len(searches) == 8
    assert not [key for key in batch.shared if key[0] == "neighbours"]  # no table is left
