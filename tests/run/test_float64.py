"""A model in float64 is measured like the same in float32."""

import copy
import inspect

import numpy as np
import pytest
from every import every_measurement, fitted, models, texts

import tokinterp as ti

OF_CASES = {"AnswerStates", "Answers", "DotAttention", "FillerContents"}
"""Measure answers or items, not texts."""


@pytest.mark.slow
def test_every_measurement_takes_a_model_in_float64():
    single = models()[0]
    double = ti.wrap(copy.deepcopy(single.source).double(), single.tokenizer, id="dropout")
    assert [m.info.dtype for m in (single, double)] == ["float32", "float64"]
    for kind in every_measurement():
        takes = inspect.signature(kind).parameters
        if kind.__name__ in OF_CASES or {"probes", "decoder"} & takes.keys():  # fits belong to one model
            continue
        made = kind(**{n: fitted()[n] for n in ("estimator", "concepts") if n in takes})
        one, two = (ti.measure(m, texts(), {"x": made}, progress=False)["x"].to_dataset() for m in (single, double))
        for name, v in one.data_vars.items():
            assert v.sizes == two[name].sizes, (kind, name)
            if v.dtype.kind == "f":
                far = ~np.isclose(v.values, two[name].values, rtol=1e-2, atol=1e-3, equal_nan=True)
                assert far.sum() <= 0.01 * far.size, (kind, name, far.sum(), far.size)
