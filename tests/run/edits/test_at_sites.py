"""Edits at a site are checked against the model, and change the chosen real positions alone."""

import pytest
import torch

import tokinterp as ti
from tokinterp.run.edits.at_sites import Patch, SiteEdit

RESID = ti.Site("resid", 2)


def test_attention_weights_are_no_place_for_values():
    with pytest.raises(ValueError, match="pattern"):
        SiteEdit(ti.Site("pattern", 1), "zero")


def test_a_value_of_another_width_is_refused():
    edit = SiteEdit(RESID, "add", value=torch.ones(7))
    with pytest.raises(ValueError, match="7"):
        edit.check(16, 16)


def test_only_chosen_real_positions_change():
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    states = torch.ones(2, 3, 4)
    out = SiteEdit(RESID, "scale", positions=[1], value=torch.tensor(3.0)).apply(states, ids, mask)
    assert out[:, 1].eq(3).all()
    assert out[:, [0, 2]].eq(1).all()
    assert states.eq(1).all(), "what was given stays as it is"


def test_donors_are_one_for_each_prompt():
    assert Patch(RESID, "patch", donor=[1, 0]).donors(2).tolist() == [1, 0]
    with pytest.raises(ValueError, match="donor"):
        Patch(RESID, "patch", donor=[1, 5]).donors(2)
