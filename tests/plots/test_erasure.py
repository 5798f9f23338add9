"""Erasure and probes as pictures and as HTML: what is shown is what was measured, and text stays text."""

import pytest
from planted_run import planted_run

import tokinterp as ti
from tokinterp.plots import overview


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
