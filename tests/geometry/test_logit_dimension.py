"""The dimension of predictions."""

import numpy as np
import pytest
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.kernels import gride as estimators
from tokinterp.kernels.neighbours import nearest


def test_logit_dimension_is_that_of_the_models_logits():
    model, prompts = tiny(), some_prompts([40, 25])
    for space in ("logits", "logprob"):
        m = ti.geometry.LogitDimension((2, 4), space=space)
        ds = ti.measure(model, prompts, {"m": m}, progress=False)["m"].to_dataset()
        for p in range(2):
            logits = model.unembed(ti.capture(model, prompts, [p], ti.resid([3])).rows(3)[1:])
            points = (logits if space == "logits" else logits.log_softmax(-1)).double()
            near = nearest(points, 4)
            wanted = estimators.gride(near.distances, near.valid, (2, 4)).dimension[0]
            np.testing.assert_allclose(ds["dimension"].sel(prompt=p), wanted, rtol=1e-4)


def test_logits_that_do_not_fit_are_refused_before_the_run():
    with pytest.raises(ValueError, match="memory"):
        ti.measure(tiny(), some_prompts([40]), {"m": ti.geometry.LogitDimension((2,))}, memory=1000)
    with pytest.raises(ValueError, match="scale 64 needs"):
        ti.measure(tiny(), some_prompts([40]), {"m": ti.geometry.LogitDimension()})


def test_special_tokens_take_part_only_if_asked():
    model, prompts = tiny(), some_prompts([40, 25])
    for exclude, less in ((("special",), 1), ((), 0)):
        ds = ti.measure(model, prompts, {"m": ti.geometry.LogitDimension((2, 4), exclude=exclude)}, progress=False)["m"]
        assert ds["n_points"].values.tolist() == [40 - less, 25 - less]
    one, other = (
        ti.measure(model, prompts, {"m": ti.geometry.LogitDimension((2, 4), space=s)}, progress=False)["m"][
            "dimension"
        ].values
        for s in ("logits", "logprob")
    )
    assert np.abs(one - other).max() > 1e-3, "the two spaces are one"


def test_too_few_points_say_so():
    asked = {"m": ti.geometry.LogitDimension((2, 8), small="nan")}
    ds = ti.measure(tiny(), some_prompts([12, 40]), asked, progress=False)["m"]
    assert ds["refused"].values.tolist() == [1, 0]
    assert ds["dimension"].isnull().values.tolist() == [[False, True], [False, False]]
