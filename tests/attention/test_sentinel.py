"""Sentinels stand behind their chunk, read it, and are what is kept of it."""

import numpy as np
import pytest
import torch

import tokinterp as ti
from tokinterp.attention.sentinel import _insert, own_chunk, reads_own_chunk, sentinels


@pytest.fixture(scope="module")
def prompts(bundled):
    return ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:3]], bundled, max_tokens=120)


# -- sentinels ------------------------------------------------------------------------------------------------
def test_sentinels_read_their_chunk_and_only_they_are_kept():
    mask = torch.ones(1, 10, dtype=torch.bool)  # BOS, 2 chunks of 2 and their sentinels, and the beginning of a third
    ids = torch.zeros(1, 10, dtype=torch.int64)
    restricted, kept = reads_own_chunk(ids, mask, 2)[0], own_chunk(ids, mask, 2, True)[0]
    for q in range(10):
        row = [bool(x) for x in restricted[q]]
        if q in (3, 6, 9):
            assert row == [k in (q - 2, q - 1, q) for k in range(10)]
        else:
            assert row == [k <= q for k in range(10)]
            seen = {
                0,
                *(k for k in (3, 6) if k < q),
                *(k for k in range(10) if (k - 1) // 3 == (q - 1) // 3 and 0 < k <= q),
            }
            assert {int(k) for k in kept[q].nonzero()[:, 0]} == seen
    hidden = own_chunk(ids, mask, 3, False)[0]
    assert hidden[5].nonzero()[:, 0].tolist() == [0, 4, 5]


@pytest.mark.slow
def test_sentinels_on_a_text(bundled, prompts):
    ds = sentinels(bundled, prompts, kinds=("newlines", "words"), chunk=16)
    ti.check(ds)
    assert (ds["hidden_change"] > 0).all()
    np.testing.assert_allclose(ds["gap_left"], ds["kept_change"].sum("prompt") / ds["hidden_change"].sum(), rtol=1e-6)
    low, high = ds["gap_left_interval"]
    assert (low < high).all()
    assert (ds["enrichment"] > 0).all()
    other = sentinels(bundled, prompts, kinds=("newlines", "words"), chunk=16, batch_tokens=1)
    np.testing.assert_allclose(ds["gap_left"], other["gap_left"], rtol=1e-2, atol=1e-3)


def test_sentinels_stand_behind_each_chunk(bundled):
    from tokinterp.text.items import Tokens

    text = np.arange(9) + 20
    (ids, mark), *_ = _insert([text], Tokens(bundled), "newlines", 4, 0)
    np.testing.assert_array_equal(ids[~mark], text)
    assert np.flatnonzero(mark).tolist() == [5, 10]
    drawn = [
        [ids[mark].tolist() for ids, mark in _insert([text, text], Tokens(bundled), "words", 2, s)] for s in (0, 1)
    ]
    assert len({tuple(x) for seed in drawn for x in seed}) == 4  # other words in each text, and of each seed


def test_sentinels_need_chunks(bundled, prompts):
    with pytest.raises(ValueError, match="two chunks of 100"):
        sentinels(bundled, prompts, chunk=100)
    with pytest.raises(ValueError, match="at least 2"):
        sentinels(bundled, prompts, chunk=1)
