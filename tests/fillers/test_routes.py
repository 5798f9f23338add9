"""Routes through the fillers are made of attention masses."""

import numpy as np
import pytest
import torch

import tokinterp as ti
from tokinterp.fillers.routes import routing
from tokinterp.text.items import build_items

QUESTIONS = ti.bundled_questions("cloze")[:12]


@pytest.mark.slow
def test_routing_is_made_of_attention_masses(bundled):
    """Against the patterns themselves."""
    asked = QUESTIONS[:3]
    ds = routing(bundled, asked, n_fillers=4)
    ti.check(ds)
    plain, items = (build_items(bundled, asked, n_fillers=k) for k in (0, 4))
    sites = [ti.Site("pattern", b) for b in range(bundled.info.n_layers)]
    i = 1
    (qa, qb), (fa, fb) = items.question[i], items.filler[i]
    with torch.no_grad():
        got = bundled.run(torch.from_numpy(items.ids[i])[None], sites)
        less = bundled.run(torch.from_numpy(plain.ids[i])[None], sites)
    reads = [float(got[s][0, :, fa:fb, qa:qb].sum(-1).mean()) for s in sites]
    asks = [float(got[s][0, :, -1, fa:fb].sum(-1).mean()) for s in sites]
    direct = [float(got[s][0, :, -1, qa:qb].sum(-1).mean()) for s in sites]
    before = [float(less[s][0, :, -1, qa:qb].sum(-1).mean()) for s in sites]
    np.testing.assert_allclose(ds["product"][i], np.multiply(reads, asks), rtol=1e-4)
    np.testing.assert_allclose(ds["direct_change"][i], np.subtract(direct, before), atol=1e-5)
    assert np.isnan(ds["routed"][:, 0]).all()
    assert float(ds["routed"][i, 3]) == pytest.approx(asks[3] * np.mean(reads[:3]), rel=1e-4)
    assert (ds["chance_change"] < 0).all()
    with pytest.raises(ValueError, match=r"n_fillers=0: give .* at least 1"):
        routing(bundled, asked, n_fillers=0)
