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
            assert float(one["largest_norm_ratio"]) == pytest.approx(norm[top] / norm[middle], rel=1e-5)
            assert float(one["trace_share"]) == pytest.approx(norm[top] ** 2 / (norm**2).sum(), rel=1e-5)
            if layer:
                before = batch.activations[S("resid", layer - 1)][0].double().numpy()[top]
                cosine = before @ x[top] / np.linalg.norm(before) / norm[top]
                assert float(one["persistence"]) == pytest.approx(cosine, abs=1e-5)
            ids = prompts.ids(p)
            rows = [(tuple(ids[: at + 1]), x[at] / norm[at]) for at in (top, middle)]
            units.setdefault(layer, []).append(rows)
    assert ds["persistence"].sel(layer=0).isnull().all()
    for layer, rows in units.items():
        for name, u in zip(("constancy", "constancy_control"), zip(*rows, strict=True), strict=True):
            pairs = [u[i][1] @ u[j][1] for i in range(7) for j in range(i) if u[i][0] != u[j][0]]
            assert float(ds[name].sel(layer=layer)) == pytest.approx(np.mean(pairs), abs=1e-4)
            assert name != "constancy" or int(ds["n_pairs"].sel(layer=layer)) == len(pairs)


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


@pytest.mark.parametrize(("place", "pairs"), [(0, 0), (2, 2), (5, 3)])
def test_what_prompts_have_in_common_by_construction_is_no_constancy(place, pairs):
    prompts = ti.Prompts.from_ids([[1, 7, 8, 9, 10, 11, 12], [1, 7, 8, 9, 10, 30, 31], [1, 7, 40, 41, 42, 43]], tiny())
    edits = [ti.edits.scale(S("resid", 1), 1000.0, positions=[place])]
    ds = ti.measure(tiny(), prompts, {"v": CompressionValley([1])}, edits=edits, progress=False)["v"]
    assert (ds["largest_position"] == place).all()
    assert int(ds["n_pairs"][0]) == pairs
    if not pairs:
        assert bool(ds["constancy"].isnull().all())
        return
    x = ti.capture(tiny(), prompts, [0, 1, 2], [S("resid", 1)]).activations[S("resid", 1)][:, place].double().numpy()
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    among = [(0, 2), (1, 2), *([(0, 1)] if pairs == 3 else [])]
    assert float(ds["constancy"][0]) == pytest.approx(np.mean([u[i] @ u[j] for i, j in among]), abs=1e-5)
