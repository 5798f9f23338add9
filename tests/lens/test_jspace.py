"""The space of the Jacobian lens: planted sums, the control, edits of states, refusals."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.lens import fit_jacobian_lens, jacobian_space, project_out, steer, swap

TEXTS = ["The river to the sea and the morning.", "One thing and the other thing in the evening."]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


@pytest.fixture(scope="module")
def lens(model):
    return fit_jacobian_lens(model, TEXTS, skip=3, progress=False)


def edited(model, edit, layer):
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    return tuple(ti.capture(model, prompts, [0, 1], ti.resid([layer]), e).rows(layer) for e in ([], [edit]))


def test_a_state_of_two_directions_is_taken_apart(model, lens):
    planted = 2 * lens.directions(model, [70], 1)[0] + 3 * lens.directions(model, [90], 1)[0]
    put = ti.edits.replace(ti.Site("resid", 1), planted)
    real = ti.states

    def planted_states(*args, **kwargs):
        return real(*args, **kwargs, edits=[put])

    from tokinterp.lens import jspace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jspace, "states", planted_states)
        ds = jacobian_space(model, TEXTS, lens, [1], "last", k=2)
    assert set(ds["atom"].values[0, 0]) == {70, 90}
    np.testing.assert_allclose(sorted(ds["weight"].values[0, 0]), [2, 3], rtol=1e-3)
    np.testing.assert_allclose(ds["share"].values[:, 0, 1], 1, atol=1e-6)
    assert (ds["control"].values[:, 0, 1] < 0.9).all(), "rotated directions do not make it up"


def test_shares_grow_and_the_control_has_the_same_number_of_directions(model, lens):
    ds = jacobian_space(model, TEXTS, lens, k=6)
    assert ds["layer"].values.tolist() == lens.layers
    for name in ("share", "control"):
        assert (ds[name].diff("n_chosen") > -1e-9).all()
        assert ((ds[name] >= 0) & (ds[name] <= 1)).all()
    assert (ds["n_active"] <= 6).all()
    other = jacobian_space(model, TEXTS, lens, k=6, seed=1)
    np.testing.assert_allclose(other["share"], ds["share"], rtol=1e-9)
    assert not np.array_equal(other["control"], ds["control"])
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    assert ds.sizes["token"] == prompts.n_tokens - 2, "special tokens are left out"


def test_steering_adds_the_direction_at_its_length(model, lens):
    before, after = edited(model, steer(lens, model, 70, 1, 5.0), 1)
    direction = lens.directions(model, [70], 1)[0]
    torch.testing.assert_close(after - before, (5 * direction / direction.norm()).expand_as(before), rtol=0, atol=1e-5)
    last = steer(lens, model, 70, 1, 5.0, positions=slice(-1, None))
    before, after = edited(model, last, 1)
    assert ((after - before).abs().amax(1) > 0).sum() == len(TEXTS)


def test_steering_raises_the_read_out_of_its_token_most(model, lens):
    before, after = edited(model, steer(lens, model, 70, 1, 5.0), 1)
    rows = lens.directions(model, range(320), 1)
    gain = (after - before)[0] @ rows.T / rows.norm(dim=1)
    assert int(gain.argmax()) == 70


def test_a_swap_exchanges_coordinates_and_leaves_the_rest(model, lens):
    before, after = edited(model, swap(lens, model, 70, 90, 2), 2)
    basis = lens.directions(model, [70, 90], 2)
    inverse = torch.linalg.pinv(basis)
    torch.testing.assert_close(after @ inverse, (before @ inverse).flip(1), rtol=1e-3, atol=1e-4)
    project = inverse @ basis
    torch.testing.assert_close(after - after @ project, before - before @ project, rtol=1e-3, atol=1e-4)
    double = edited(model, swap(lens, model, 70, 90, 2, 2.0), 2)[1]
    torch.testing.assert_close(double - before, 2 * (after - before), rtol=1e-3, atol=1e-4)


def test_what_is_removed_is_gone(model, lens):
    before, after = edited(model, project_out(lens, model, [70, 90, 90], 1), 1)
    assert (after @ lens.directions(model, [70, 90], 1).T).abs().max() < 1e-4
    assert (before @ lens.directions(model, [70, 90], 1).T).abs().max() > 1e-2


def test_what_does_not_fit_is_refused(model, lens):
    with pytest.raises(ValueError, match="token=400: tiny has ids below 320"):
        steer(lens, model, 400, 1, 1.0)
    with pytest.raises(ValueError, match=r"other=70: its direction at layer 1 has a cosine of 1\.0000"):
        swap(lens, model, 70, 70, 1)
    with pytest.raises(ValueError, match=r"has no layers \[0\]"):
        jacobian_space(model, TEXTS, lens, [0])
