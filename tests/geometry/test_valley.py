"""The compression valley: planted massive rows, a loop, pairs of prompts, what is the same by construction."""

import numpy as np
import pytest
from contract import assert_contract
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry import CompressionValley
from tokinterp.run.stream import capture

S = ti.Site


def share(x):
    s = np.linalg.svd(x, compute_uv=False) ** 2
    s = s[s > 1e-12 * s.max()] / s.sum()
    return -(s * np.log(s)).sum() / np.log(min(x.shape))


def test_the_valley_keeps_the_contract_and_is_that_of_a_loop():
    prompts = some_prompts([22, 30, 17, 30, 25, 19, 28])
    ds = assert_contract(CompressionValley)
    units = {}
    for p in range(7):
        batch = capture(tiny(), prompts, [p], ti.resid(range(4)))
        for layer in range(4):
            x = batch.activations[S("resid", layer)][0].double().numpy()
            norm = np.linalg.norm(x, axis=1)
            top, middle = norm.argmax(), np.argsort(-norm, kind="stable")[len(x) // 2]
            one = ds.sel(prompt=p, layer=layer)
            assert int(one["largest_position"]) == top
            expected = [share(x), share(np.delete(x, top, 0)), share(np.delete(x, middle, 0))]
            found = [float(one[n]) for n in ("entropy", "entropy_without", "entropy_control")]
            np.testing.assert_allclose(found, expected, rtol=1e-4)
            assert float(one["norm_ratio"]) == pytest.approx(norm[top] / norm[middle], rel=1e-5)
            assert float(one["trace_share"]) == pytest.approx(norm[top] ** 2 / (norm**2).sum(), rel=1e-5)
            if layer:
                before = batch.activations[S("resid", layer - 1)][0].double().numpy()[top]
                cosine = before @ x[top] / np.linalg.norm(before) / norm[top]
                assert float(one["persistence"]) == pytest.approx(cosine, abs=1e-5)
            if top:  # no BOS
                units.setdefault(layer, []).append((x[top] / norm[top], x[middle] / norm[middle]))
    assert ds["persistence"].sel(layer=0).isnull().all()
    for layer, rows in units.items():
        assert int(ds["n_constancy"].sel(layer=layer)) == len(rows)
        for name, u in zip(("constancy", "constancy_control"), np.array(rows).swapaxes(0, 1), strict=True):
            pairs = [u[i] @ u[j] for i in range(len(u)) for j in range(i)]
            assert float(ds[name].sel(layer=layer)) == pytest.approx(np.mean(pairs), abs=1e-4)


def test_a_planted_massive_row_makes_the_valley_and_leaving_it_out_ends_it():
    edits = [ti.edits.scale(S("resid", 1), 1000.0, positions=[4])]
    prompts = some_prompts([20, 16])
    ds = ti.measure(tiny(), prompts, {"v": CompressionValley()}, edits=edits, progress=False)["v"]
    one = ds.sel(layer=1)
    assert (one["largest_position"] == 4).all()
    assert float(one["entropy"].max()) < 0.02
    assert float(one["entropy_control"].max()) < 0.02
    assert float(one["entropy_without"].min()) > 0.6
    assert float(one["trace_share"].min()) > 0.99


def test_what_bos_has_in_common_by_construction_is_no_constancy():
    edits = [ti.edits.scale(S("resid", 1), 1000.0, positions=[0])]
    ds = ti.measure(tiny(), some_prompts([20, 16]), {"v": CompressionValley([1])}, edits=edits, progress=False)["v"]
    assert (ds["largest_position"] == 0).all()
    assert int(ds["n_constancy"][0]) == 0
    assert bool(ds["constancy"].isnull().all())
