"""Norms of sets of tokens and the massive ones among them, against loops."""

import numpy as np
import pytest
from by_hand import streams
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.kernels.massive import massive_rows


def test_norms_and_massive_tokens_of_sets_are_those_of_loops():
    model, prompts = tiny(), ti.text.mark(some_prompts([12, 9]), some=[[1, 4], [3, 3]])
    asked = {"sizes": ti.attention.SetNorms({"some": "some", "rest": "other"}, layers=[1, 3], factor=1.02)}
    found = ti.measure(model, prompts, asked, progress=False)["sizes"]
    hot = 0
    for i in range(2):
        x = streams(model, prompts.ids(i)).float()
        for layer in (1, 3):
            rows = massive_rows(x[layer][None], x[layer][None, :, 0] == x[layer][None, :, 0], factor=1.02)[0].numpy()
            member = np.zeros(prompts.lengths[i], dtype=bool)
            member[slice(*[[1, 4], [3, 3]][i])] = True
            for name, where in (("some", member), ("rest", ~member)):
                one = found.to_dataset().isel(prompt=i).sel(layer=layer, key_set=name)
                norm = np.linalg.norm(x[layer].numpy()[where], axis=-1)
                assert float(one["norm"]) == pytest.approx(norm.mean() if where.any() else np.nan, nan_ok=True)
                share = rows[where].mean() if where.any() else np.nan
                assert float(one["massive_share"]) == pytest.approx(share, nan_ok=True)
                hot += rows[where].sum()
    assert hot > 2


def test_a_mark_without_tokens_under_one_condition_has_no_mass_there():
    prompts = some_prompts([9, 12])
    conditions = {
        "with": ti.Condition(ti.text.mark(prompts, some=[[1, 3], [2, 4]])),
        "without": ti.Condition(ti.text.mark(prompts, some=[[0, 0], [0, 0]])),
    }
    asked = {"mass": ti.attention.AttentionMass({"some": "some", "rest": "other"}, value_weighted=False)}
    found = ti.measure_conditions(tiny(), conditions, asked, progress=False)["mass"].to_dataset()
    assert (found["mass"].sel(condition="with", key_set="some") > 0).all()
    assert (found["mass"].sel(condition="without", key_set="some") == 0).all()
    assert np.isnan(found["enrichment"].sel(condition="without", key_set="some")).all()
    wrong = {"mass": ti.attention.AttentionMass(queries={"some": "some"})}
    with pytest.raises(ValueError, match=r"queries \['some'\]: no token of any prompt"):
        ti.measure_conditions(tiny(), conditions, wrong, progress=False)
