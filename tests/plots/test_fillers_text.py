"""Figures of separators, coverage and cells."""

import numpy as np
import pytest

import tokinterp as ti
from tokinterp import plots

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["segment_coverage", "segment_probe", "separator_windows", "registers", "routing"])
def test_overviews_of_text_and_routing(bundled, kind):

    texts = [t.text for t in ti.bundled_texts()[:6]]
    asked = ti.bundled_questions("cloze")[:12]
    given = asked if kind == "routing" else ti.Prompts.from_texts(texts, bundled, max_tokens=80, progress=False)
    ds = getattr(ti.fillers if kind == "routing" else ti.attention, kind)(bundled, given)
    ((name, caption, fig),) = plots.overview(ds)
    assert name == kind
    assert "95 % interval" in caption
    drawn = fig.axes[0]
    assert drawn.get_xlabel()
    assert drawn.get_legend() is not None
    plain = next(v for v in ("enrichment", "explained", "kl", "loss_change", "direct") if v in ds)
    if "prompt" in ds[plain].dims:
        ds = ti.summary(ds)
    low, high = ds[f"{plain}_interval"].transpose("bound", ...).values
    known = np.isfinite(ds[plain].values)
    assert (low[known] <= ds[plain].values[known] + 1e-12).all()
    assert (ds[plain].values[known] <= high[known] + 1e-12).all()
