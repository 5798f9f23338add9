"""Measurements say their fields once: what is kept, summed and derived comes out under these names, or is refused."""

import inspect

import numpy as np
import pytest
import torch
from every import every_measurement, fitted, models, texts
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp import Field
from tokinterp.geometry.clouds import OfLayers

SHOW = {
    "AttentionMass": {"value_weighted": True, "similarity": True},
    "CosineSimilarity": {"pivots": 2},
    "Curvature": {"tokens": 1},
    "InformationImbalance": {"k": (1, 2)},
    "LayerSimilarity": {"measures": ("cka", "procrustes", "rsa", "rbf", "neighbours"), "null": True, "sample": 16},
    "LogitLens": {"boundaries": True},
    "NeighbourGraph": {"k": (1, 2), "tokens": 1},
    "NeighbourOverlap": {"k": (1, 2), "tokens": 1},
    "TokenLoss": {"divergence": True, "states": True},
    "PerCloud": {"estimator": lambda x: (float(x.std()), x[:, 0]), "tokens": 1},
}
"""Settings with which everything is shown that the defaults leave out."""
ELSEWHERE = {
    "AttentionMass": {"sink_mass"},
    "LayerSimilarity": {"cka_error", "cka_debiased_error"},
    "QuickLens": {"boundary_auroc", "spike_auroc"},
}
"""Fields of models with learned sinks, of the other ways to compare layers, and of `LogitLens` alone."""


class Steps(OfLayers):
    """A toy: each kind of field."""

    fields = {
        "length": Field(("prompt", "layer"), "mean length", "m", "a paper"),
        "token_length": Field(("token", "layer"), "length"),
        "total": Field(("layer", "bin"), "sums of lengths, twice"),
        "double": Field(("prompt", "layer"), "twice the length"),
        "_squares": Field(("layer",), "sums of squares"),
    }

    def __init__(self, layers=None, tokens=1, exclude=("special",)):
        super().__init__()
        self.layers, self.tokens, self.exclude = layers, tokens, exclude

    def of_layer(self, batch, layer, mask):
        norm = batch.resid(layer).double().norm(dim=-1)
        kept = norm * mask
        total = kept.sum()
        return {
            "length": kept.sum(1) / mask.sum(1),
            "token_length": norm,
            "total": torch.stack([total, total]),
            "_squares": (kept**2).sum(),
        }

    def derive(self, found):
        assert found["_squares"].shape == (len(self.at_layers()),)
        return {"double": 2 * found["length"]}

    def coords(self):
        return {"bin": ([0.5, 1.5], "side", "1"), "bin_number": ("bin", [1, 2], "number of the bin", "1")}

    def notes(self):
        return {"length": {"exclude": ", ".join(self.exclude)}}


def test_each_field_comes_out_where_it_was_put():
    model, prompts = tiny(), some_prompts([7, 12, 9])
    ds = ti.measure(model, prompts, {"m": Steps([0, 2])}, batch_tokens=12, progress=False)["m"].to_dataset()
    assert set(ds.data_vars) == {"length", "token_length", "total", "double"}
    assert ds["length"].attrs == {
        "long_name": "mean length",
        "units": "m",
        "references": "a paper",
        "exclude": "special",
    }
    assert ds["total"].dims == ("layer", "bin")
    assert ds["bin_number"].dims == ("bin",)
    assert ds["layer"].values.tolist() == [0, 2]
    assert ds["token_prompt"].values.tolist() == [0] * 7
    assert ds["position"].values.tolist() == list(range(7))
    for i, layer in enumerate((0, 2)):
        total = 0.0
        for p in range(3):
            with torch.no_grad():
                batch = ti.capture(model, prompts, [p], ti.resid([layer]))
            norm = batch.resid(layer)[0].double().norm(dim=-1)
            keep = ~batch.special[0]
            total += float(norm[keep].sum())
            assert float(ds["length"][p, i]) == pytest.approx(float(norm[keep].mean()), rel=1e-5)
            if p == 0:
                np.testing.assert_allclose(ds["token_length"][:, i], norm, rtol=1e-5)
        assert ds["total"][i].values == pytest.approx([total, total], rel=1e-5)
    np.testing.assert_array_equal(ds["double"], 2 * ds["length"])


def test_no_single_tokens_are_kept_where_none_are_asked_for():
    found = [
        ti.measure(tiny(), some_prompts([7, 5]), {"m": Steps([1], tokens=n)}, progress=False)["m"] for n in (0, None)
    ]
    assert [ds.sizes["token"] for ds in found] == [0, 12]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lenght", lambda b: b.mask.sum(1), "it is not in fields, which has length, token_length"),
        ("total", lambda b: b.mask.sum(1), r"its dimensions are \('layer', 'bin'\); add\(\) is for sums"),
        ("length", lambda b: b.mask.sum(1), r"has the shape \(2,\); \(prompt, layer\) begins with \(2,\)"),
        ("length", lambda b: b.mask.sum(0)[:, None], r"has the shape \(9, 1\); \(prompt, layer\) begins with \(2,\)"),
        ("token_length", lambda b: b.mask[..., :1, None], r"\(prompt, position, layer\) begins with \(2, 9\)"),
    ],
)
def test_what_no_field_says_is_refused_where_it_is_kept(name, value, said):
    batch = ti.capture(tiny(), some_prompts([9, 4]), [0, 1], ti.resid([1]))
    with pytest.raises(TypeError, match=rf"Steps\.keep\({name}=\).*{said}"):
        Steps([1]).keep(batch, **{name: value(batch)})


def test_what_no_field_says_is_refused_where_it_is_derived(monkeypatch):
    monkeypatch.setattr(Steps, "derive", lambda self, found: {"tripel": 3})
    with pytest.raises(TypeError, match=r"Steps\.derive\(\) gives tripel, which fields does not have"):
        ti.measure(tiny(), some_prompts([7, 5]), {"m": Steps([1])}, progress=False)


def test_nothing_seen_is_no_result():
    with pytest.raises(ValueError, match="Steps has seen no batch yet"):
        Steps().result()


@pytest.mark.slow
def test_every_field_is_in_a_result():
    asked = {}
    for kind in every_measurement():
        if kind.__module__.startswith("tokinterp.fillers.") or not kind.fields:
            continue
        needed = [n for n, p in inspect.signature(kind).parameters.items() if p.default is p.empty]
        asked[kind.__name__] = kind(**{**{n: fitted()[n] for n in needed}, **SHOW.get(kind.__name__, {})})
    assert len(asked) > 20
    run = ti.measure(models()[0], texts(), asked, progress=False)
    for name, m in asked.items():
        public = {n for n in m.fields if not n.startswith("_")}
        assert set(run[name].data_vars) == public - ELSEWHERE.get(name, set()), name
