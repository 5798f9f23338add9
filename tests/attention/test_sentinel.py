"""Sentinels stand behind their chunk, read it, and are what is kept of it."""

from functools import partial

import numpy as np
import pytest
import torch
from by_hand import losses
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.attention.masks import keep_only
from tokinterp.attention.sentinel import _insert, _marked, own_chunk, reads_own_chunk, sentinels
from tokinterp.run import edits as E


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


@pytest.mark.slow
def test_the_gap_is_that_of_the_prompts_that_are_finite():
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="m")
    draw = np.random.default_rng(0)
    ids = [[1, *draw.integers(5, 60, 24)] for _ in range(4)]
    ids[2][3] = 61
    with torch.no_grad():
        model.lm.model.embed_tokens.weight[61] = torch.nan
    every, good = (ti.Prompts.from_ids(some, model, bos=True) for some in (ids, ids[:2] + ids[3:]))
    ds = sentinels(model, every, kinds=("newlines",), chunk=8)
    other = sentinels(model, good, kinds=("newlines",), chunk=8)
    assert np.isfinite(ds["gap_left"]).all()
    np.testing.assert_allclose(ds["gap_left"], other["gap_left"], rtol=1e-5)
    np.testing.assert_allclose(ds["gap_left_interval"], other["gap_left_interval"], rtol=1e-5)


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


def test_the_loss_of_a_chunked_text_is_that_of_a_loop(long_model, marked_texts):
    """Tokens from the second chunk on, each predicted by a token of its own chunk, no sentinel among them."""
    for size, extra in ((4, 0), (4, 1), (3, 0)):
        texts = [(marked_texts.ids(i), np.zeros(marked_texts.lengths[i], dtype=bool)) for i in range(2)]
        asked = {"loss": ti.behaviour.TokenLoss("counted")}
        found = ti.measure(long_model, _marked(long_model, texts, size, size + extra), asked, progress=False)[
            "loss/loss"
        ]
        for i in range(2):
            ids = marked_texts.ids(i)
            own = losses(long_model, ids)
            counted = []
            for t in range(1, len(ids)):  # the token that is predicted
                chunk, place = divmod(t - 1, size + extra)
                if chunk >= 1 and 1 <= place < size:
                    counted.append(own[t - 1])
            assert float(found[i]) == pytest.approx(np.mean(counted), rel=1e-5)


def test_changes_by_sentinels_are_those_of_a_loop(long_model, marked_texts):
    """What each token may read is closed edge by edge: all but its own chunk, or all but that and the sentinels."""
    size = 5
    ds = sentinels(long_model, marked_texts, kinds=(" x",), chunk=size)
    sign = long_model.tokenizer("a x", add_special_tokens=False)["input_ids"][-1]

    def run(ids, period, sees):
        """Loss of the tokens from the second chunk on that a token of the same chunk predicts."""
        chunk = [-1 if t == 0 else (t - 1) // period for t in range(len(ids))]
        mark = [t > 0 and (t - 1) % period == size for t in range(len(ids))]
        closed = [(k, q) for q in range(len(ids)) for k in range(q) if not sees(k, q, chunk, mark)]
        edits = [E.knock_out([k], [q for kk, q in closed if kk == k]) for k in sorted({k for k, _ in closed})]
        own = losses(long_model, ids, edits)
        counted = [own[t - 1] for t in range(2, len(ids)) if chunk[t] == chunk[t - 1] >= 1 and not mark[t]]
        return np.mean(counted)

    for i in range(2):
        whole = (marked_texts.lengths[i] - 1) // size
        ids = np.asarray(marked_texts.ids(i))[: 1 + size * whole]
        full = run(ids, size, lambda *_: True)
        hidden = run(ids, size, lambda k, q, chunk, mark: chunk[k] in (-1, chunk[q]))
        assert float(ds["loss"][i]) == pytest.approx(full, rel=1e-5)
        assert float(ds["hidden_change"][i]) == pytest.approx(hidden - full, abs=1e-4)
        marked = np.append(ids[:1], np.insert(ids[1:].reshape(-1, size), size, sign, axis=1))
        read = run(marked, size + 1, lambda k, q, chunk, mark: not mark[q] or chunk[k] == chunk[q])
        only = run(marked, size + 1, lambda k, q, chunk, mark: chunk[k] in (-1, chunk[q]) or (mark[k] and not mark[q]))
        one = ds.sel(filler=" x").isel(prompt=i)
        assert float(one["sentinel_change"]) == pytest.approx(read - full, abs=1e-4)
        assert float(one["kept_change"]) == pytest.approx(only - full, abs=1e-4)
        assert abs(read - only) > 1e-3
        # by head and block: what text reads on sentinels beside position 0 and itself, over their share of these keys
        n = len(marked)
        mark = np.array([t > 0 and (t - 1) % (size + 1) == size for t in range(n)])
        edit = keep_only(partial(reads_own_chunk, size=size))
        patterns = [ti.Site("pattern", b) for b in range(3)]
        with torch.no_grad():
            got = long_model.run(torch.from_numpy(marked)[None], patterns, edits=[edit])
        ratios = []
        for a in (x for v in got.values() for x in v[0].double().numpy()):
            left, share = [], []
            for q in [q for q in range(n) if not mark[q] and q >= 2]:
                keys = np.arange(1, q)
                left.append(a[q, keys[mark[1:q]]].sum() / a[q, keys].sum())
                share.append(mark[1:q].mean())
            ratios.append(np.mean(left) / np.mean(share))
        assert float(one["enrichment"]) == pytest.approx(np.mean(ratios), rel=1e-4)


def test_what_sentinels_leave_is_a_ratio_of_sums(long_model, marked_texts, monkeypatch):
    from tokinterp.attention import sentinel

    true = sentinel.compared

    def fake(*args, **options):
        found = true(*args, **options)
        values = {"whole": [1.0, 1.0], "hidden": [3.0, 1.001], "sentinels: dots": [1.5, 1.5],
                  "only sentinels: dots": [2.0, 1.5]}  # fmt: skip
        for name, v in values.items():
            found["loss"]["loss"].loc[{"condition": name}] = v
        return found

    monkeypatch.setattr(sentinel, "compared", fake)
    ds = sentinels(long_model, marked_texts, kinds=("dots",), chunk=5)
    np.testing.assert_allclose(ds["hidden_change"], [2, 0.001])
    np.testing.assert_allclose(ds["kept_change"][:, 0], [1, 0.5])
    assert float(ds["gap_left"][0]) == pytest.approx(1.5 / 2.001)
    assert ds["gap_left"].dims == ("filler",)
