"""Agreement of fits that differ in their seed, against loops over the segments and tokens."""

import numpy as np
import pytest
import xarray as xr

from tokinterp.erasure.evaluation_seeds import seed_agreement

SPANS = [(0, 1, 3), (0, 3, 4), (0, 4, 7), (1, 1, 3)]


def fit(spans, psi, seed):
    rng = np.random.default_rng(seed)
    delta = np.arange(6.0)[:, None] + rng.normal(size=(6, 2))
    coords = {
        "token_prompt": ("token", [0, 0, 0, 1, 1, 1]), "position": ("token", [1, 2, 3, 1, 2, 3]), "offset": [0, -1],
        "span_prompt": ("span", [s[0] for s in spans]), "start": ("span", [s[1] for s in spans]),
        "stop": ("span", [s[2] for s in spans]),
    }  # fmt: skip
    return xr.Dataset({"psi": ("span", psi), "delta": (("token", "offset"), delta)}, coords, {"prompts": "p"})


@pytest.fixture(scope="module")
def fits():
    return [fit(SPANS, [0.1, 9, 0.5, 0.2], 0), fit(SPANS[:3], [0.3, 9, 0.4], 1), fit(SPANS[1:], [9, 0.7, 0.1], 2)]


def test_segments_of_two_or_more_tokens_are_compared(fits):
    found = seed_agreement(fits)
    sets = [{s for s in spans if s[2] - s[1] > 1} for spans in (SPANS, SPANS[:3], SPANS[1:])]
    share = [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert float(found["shared_segments"]) == pytest.approx(np.mean(share))
    assert int(found["n_shared"]) == 1  # (0, 4, 7)
    assert float(found["psi_sd"]) == pytest.approx(np.std([0.5, 0.4, 0.7], ddof=1))
    np.testing.assert_allclose(found["mean_psi"], [np.mean([0.1, 0.5, 0.2]), np.mean([0.3, 0.4]), np.mean([0.7, 0.1])])


def test_spread_of_delta_is_over_fits(fits):
    found = seed_agreement(fits)
    for n in range(2):
        x = np.stack([f["delta"].values[:, n] for f in fits])
        assert float(found["delta_sd"][n]) == pytest.approx(np.sqrt(np.mean(x.var(0, ddof=1))))
        assert float(found["delta_spread"][n]) == pytest.approx(x.mean(0).std())
        r = [np.corrcoef(x[a], x[b])[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
        assert float(found["delta_correlation"][n]) == pytest.approx(np.mean(r))


def test_results_that_differ_in_more_are_refused(fits):
    with pytest.raises(ValueError, match="prompts is p and q"):
        seed_agreement([fits[0], fits[1].assign_attrs(prompts="q")])
    with pytest.raises(ValueError, match="keeps no delta per token"):
        seed_agreement([fits[0], fits[1].drop_vars("delta")])
    with pytest.raises(ValueError, match="delta for other tokens"):
        seed_agreement([fits[0], fits[1].isel(token=slice(3))])
