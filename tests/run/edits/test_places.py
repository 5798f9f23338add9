"""Other places for the tokens of a run: hidden and closed up is deleted; who counts by itself refuses."""

import numpy as np
import pytest
import torch
from tiny import some_ids, some_prompts, tiny

import tokinterp as ti
from tokinterp.run.edits.places import closed_up
from tokinterp.run.stream import capture
from tokinterp.text.marks import mark

E, S = ti.edits, ti.Site
LENGTHS = [9, 6, 12]
LAST = S("resid", 3)


def test_models_that_count_places_themselves_refuse_others_before_the_pass():
    prompts = some_prompts(LENGTHS)
    with pytest.raises(ValueError, match="ignores position_ids"):
        ti.measure(tiny("bloom"), prompts, {"n": ti.geometry.TokenNorms()}, progress=False,
                   edits=[E.renumber(np.arange(27))])  # fmt: skip
    with pytest.raises(ValueError, match="give it position_ids"):
        tiny().run(some_ids(), [LAST], edits=[E.renumber(np.arange(18))])


def test_hidden_tokens_with_places_closed_up_are_as_good_as_deleted():
    prompts = mark(some_prompts(LENGTHS), hidden=[[2, 4], [1, 3], [5, 8]])
    hidden = prompts.marks["hidden"]
    own = np.split(hidden, prompts.starts[1:-1])
    shorter = ti.Prompts.from_ids([prompts.ids(i)[~h] for i, h in enumerate(own)])
    closed = E.renumber(closed_up(hidden, prompts))

    def rows(prompts, *edits):
        return capture(tiny(), prompts, [2, 0, 1], [LAST], edits).rows(3)

    hidden = np.concatenate([own[2], own[0], own[1]])
    found, wanted = rows(prompts, E.knock_out("hidden"), closed), rows(shorter)
    torch.testing.assert_close(found[~hidden], wanted, rtol=1e-4, atol=1e-5)
    kept = rows(prompts, E.knock_out("hidden"))
    assert float((kept[~hidden] - wanted).abs().max()) > 1e-3  # the places count
