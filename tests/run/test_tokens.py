"""The tokens of a batch as rows: their places among all tokens, and back to where they stand."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti


@pytest.fixture(scope="module")
def prompts():
    return some_prompts([5, 12, 1, 7, 12, 3])


@pytest.fixture(scope="module")
def batch(prompts):
    return ti.capture(tiny(), prompts, [3, 0, 2], ti.resid([0, 2]))


def test_place_is_that_among_all_tokens_also_in_a_share(prompts):
    batch = ti.capture(tiny(), prompts, [3, 0, 2], ti.resid([0]))
    assert prompts.token_ids[batch.tokens.place].tolist() == batch.tokens.ids.tolist()
    share = ti.capture(tiny(), prompts, [3, 1], ti.resid([0]))
    assert prompts.token_ids[share.tokens.place].tolist() == share.tokens.ids.tolist()
    assert share.select([1]).tokens.place.tolist() == list(range(5, 17))
    known = np.arange(prompts.n_tokens)[:, None] * [1, 10]
    assert batch.tokens.of_stream(known, -1)[0].tolist() == [[n, 10 * n] for n in range(18, 25)]
    assert batch.tokens.of_stream(known, -1)[1, 5:].tolist() == [[-1, -1]] * 2


def test_rows_go_back_to_their_places(batch):
    x = batch.resid(2).masked_fill(~batch.mask[..., None], 7)
    assert torch.equal(batch.tokens.spread(batch.flatten(x), 7), x)
