"""The quick lens has the values of the whole one, at the positions that it draws."""

import numpy as np
import pytest
import torch
from standin import StandIn
from tiny import some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.lens import LogitLens, QuickLens
from tokinterp.models.embeddings import head_in


@pytest.mark.parametrize("positions", [1, 4, 11, 30])
def test_drawn_positions_have_the_values_of_a_run_over_all(positions):
    model = StandIn()
    whole = model.measured(LogitLens(tokens=None)).result()
    ds = model.measured(QuickLens(tokens=None, positions=positions), [[4, 2], [0, 3], [1]]).result()
    starts = np.concatenate([[0], np.cumsum(model.lengths)])
    here = starts[ds["token_prompt"].values] + ds["position"].values
    for name in ("token_cross_entropy", "token_kl", "token_stable_layer", "target_rank", "top_id", "top_prob"):
        np.testing.assert_allclose(ds[name], whole[name].isel(token=here), rtol=1e-5, atol=1e-6, err_msg=name)
    for p, n in enumerate(model.lengths):
        mine = (ds["token_prompt"] == p).values
        assert mine.sum() == min(positions, n - 1)
        assert n - 1 not in ds["position"].values[mine]  # it has no next token
        np.testing.assert_array_equal(ds["n_positions"].sel(prompt=p), min(positions, n - 1))
        for mean, one in (("entropy", "token_entropy"), ("stable_layer", "token_stable_layer")):
            np.testing.assert_allclose(ds[mean].sel(prompt=p), ds[one].values[mine].mean(0), rtol=1e-5)
    assert f"at most {positions}" in ds["entropy"].attrs["positions"]


def test_positions_are_drawn_everywhere_alike():
    model = StandIn([41] * 300, n_layers=1)
    ds = model.measured(QuickLens(tokens=None, top=0, positions=4), [range(300)]).result()
    drawn = ds["position"].values.reshape(300, 4)
    assert len({tuple(row) for row in drawn.tolist()}) > 290  # of each prompt others
    counts = np.bincount(drawn.ravel(), minlength=40)
    assert len(counts) == 40  # never the last position
    assert ((counts - 30) ** 2 / 30).sum() < 80  # chi-squared of 39 degrees: 0.0001


def test_products_in_bfloat16_are_close_and_only_in_the_head():
    model, prompts = tiny(), some_prompts([9, 12])
    asked = {"exact": LogitLens(top=1), "fast": QuickLens(top=1, positions=None, products="bfloat16")}
    run = ti.measure(model, prompts, asked, progress=False)
    gap = abs(run["fast"]["token_entropy"] - run["exact"]["token_entropy"])
    assert 0 < float(gap.max()) < 0.05
    assert {p.dtype for p in model.lm.parameters()} == {torch.float32}  # the model itself is left alone


class Packed(torch.nn.Module):
    """A head whose weights are whole numbers, which no other dtype may touch."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("weight", (linear.weight.detach() * 100).round().to(torch.int8))
        self.register_buffer("scale", torch.full((len(self.weight), 1), 0.01))

    def forward(self, x):
        return x @ (self.weight * self.scale).T


@pytest.mark.parametrize("packed", [False, True])
def test_a_head_of_few_digits_is_left_as_it_is(packed):
    lm = tiny_lm()
    if packed:
        lm.lm_head = Packed(lm.lm_head)
    else:
        lm = lm.half()
    model = ti.wrap(lm, id="tiny")
    assert head_in(model, torch.bfloat16) == model.head
    assert head_in(tiny(), torch.bfloat16) != tiny().head


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": 0}, "positions=0"),
        ({"products": "int8"}, "products='int8'"),
        ({"variants": ("tuned",)}, r"variants=[(]'tuned',"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QuickLens(**settings)
