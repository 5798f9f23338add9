"""Erasure and probes as pictures and as HTML: what is shown is what was measured, and text stays text."""

import numpy as np
import pytest
import xarray as xr
from erasure.test_erasure import planted_run

import tokinterp as ti
from tokinterp.plots import overview


def small(text, psi=0.5, **attrs):
    """Two tokens in one segment, and one more."""
    coords = {
        "token_prompt": ("token", [0, 0, 0]), "position": ("token", [1, 2, 3]), "offset": [0, -1],
        "text": ("token", np.array(list(text), object)), "token_id": ("token", [5, 6, 7]),
        "span_prompt": ("span", [0, 0]), "start": ("span", [1, 3]), "stop": ("span", [3, 4]),
    }  # fmt: skip
    data = {
        "psi": ("span", [psi, 0.9]),
        "delta": (("token", "offset"), np.array([[0.1, np.nan], [0.25, 0.5], [0, 0]])),
    }
    return xr.Dataset(data, coords, {"start_layer": 1, "end_layer": 3, "measurement": "ErasureScores", **attrs})


@pytest.mark.slow
def test_overviews_are_found_by_the_name_of_the_measurement(bundled):
    ds, _ = planted_run()
    ds.attrs["measurement"] = "ErasureScores"
    assert [name for name, *_ in overview(ds)] == ["erasure", "erasure_map"]
    assert [name for name, *_ in overview(ds.drop_dims("token"))] == ["erasure"]
    texts = [t.text for t in ti.bundled_texts()]
    make = [ti.Prompts.from_texts(t, bundled, max_tokens=40) for t in (texts[:4], texts[4:7])]
    probes = ti.erasure.fit_probes(bundled, make[0], layers=[0, 2], offsets=[0, -1], progress=False)
    scores = ti.erasure.score_probes(probes, bundled, make[1], progress=False, n_boot=10)
    ((name, caption, fig),) = overview(scores)
    assert name == "probe_scores"
    assert "bigrams" in caption
    assert [ax.get_ylabel() for ax in fig.axes] == ["accuracy", "gap"]
