"""Separators: what a separator holds of its segment, and hiding them block by block."""

import numpy as np
import pytest
import torch
from by_hand import losses, streams
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention.masks import separators_of
from tokinterp.attention.separators import (
    Hidden,
    segment_probe,
    segments,
    separator_windows,
)
from tokinterp.run import edits as E


@pytest.fixture(scope="module")
def prompts(bundled):
    return ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:6]], bundled, max_tokens=80)


@pytest.mark.slow
def test_a_probe_finds_what_the_last_token_holds(bundled, prompts):
    texts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts()], bundled, max_tokens=200)
    ds = segment_probe(bundled, texts, layers=[0, 8])
    ti.check(ds)
    found = ds["explained"]
    assert int(ds["n_segments"]) > 500
    # no state of another segment tells of this one, and a separator tells more after attention than before
    assert float(abs(found.sel(source="separator of another segment")).max()) < 0.03
    assert float(found.sel(source="separator", layer=8).min()) > float(found.sel(source="separator", layer=0).max())
    # at layer 0 a token knows itself: part of the mean, but not of what is left without it
    own = found.sel(source="last content token", layer=0)
    assert float(own.sel(target="segment")) > 0.05
    assert float(own.sel(target="segment")) > float(own.sel(target="segment without its last token")) + 0.05
    assert float(found.sel(source="separator", layer=0).max()) < 0.05  # before attention it knows its kind
    with pytest.raises(ValueError, match="give at least 9"):
        segment_probe(bundled, prompts, folds=9)


def test_the_probe_is_given_what_it_says(monkeypatch):
    """State of separator, last content token and another separator; mean embeddings; folds and draws over prompts."""
    from tokinterp.attention import separators

    model, asked, drawn = tiny(), [], []
    texts = ["Going, another. Nothing; whatever", "One, two or three; more.", "Days, nights, moons."]
    prompts = ti.Prompts.from_texts(texts * 2, model)

    def held(x, y, fold, folds, ridge):
        asked.append([torch.from_numpy(v) for v in (x, y, fold)])
        return np.ones((2, len(x)))

    def share(error, total, unit, **options):
        drawn.append(unit.tolist())
        return np.zeros((3, *error.shape[1:]))

    monkeypatch.setattr(separators, "held_out", held)
    monkeypatch.setattr(separators, "share_explained", share)
    ds = segment_probe(model, prompts, layers=[0, 2], folds=3)
    marks = separators_of(prompts)
    (owner,) = drawn  # prompts in the order of their batches
    own = [segments(np.asarray(prompts.ids(i)), marks, 1, 3) for i in range(6)]
    spans = [(i, s) for i in dict.fromkeys(owner) for s in own[i]]
    assert owner == [i for i, _ in spans]
    assert min(owner.count(i) for i in range(6)) >= 2
    assert int(ds["n_segments"]) == len(spans)
    table = model.lm.get_input_embeddings().weight.detach().double()
    content = [table[prompts.ids(i)[s[:-1]]] for i, s in spans]
    wanted = [torch.stack([c.mean(0) for c in content]), torch.stack([c[:-1].mean(0) for c in content])]
    with torch.no_grad():
        runs = [model.run(torch.from_numpy(prompts.ids(i))[None], ti.resid([0, 2])) for i in range(6)]
    for n, (x, y, fold) in enumerate(asked):
        target, source, layer = np.unravel_index(n, (2, 3, 2))
        h = [runs[i][ti.Site("resid", (0, 2)[layer])][0].double() for i in range(6)]
        ends = torch.stack([h[i][s[-1]] for i, s in spans])
        torch.testing.assert_close(y, wanted[target])
        if source < 2:
            torch.testing.assert_close(x, torch.stack([h[i][s[-1 - source]] for i, s in spans]), rtol=1e-4, atol=1e-5)
        else:
            for r, (i, _) in enumerate(spans):
                others = [k for k, (j, _) in enumerate(spans) if j == i and k != r]
                assert any(torch.allclose(x[r], ends[k], rtol=1e-4, atol=1e-5) for k in others)
        parts = [{int(f) for f, o in zip(fold, owner, strict=True) if o == i} for i in range(6)]
        assert all(len(part) == 1 for part in parts)
        assert sorted(f for part in parts for f in part) == [0, 0, 1, 1, 2, 2]


def test_segments_end_with_their_first_separator():
    ids = np.array([9, 5, 6, 9, 9, 7, 9, 8, 8, 8])
    assert [s.tolist() for s in segments(ids, (9,), 1)] == [[1, 2, 3], [5, 6]]
    assert [s.tolist() for s in segments(ids, (9,), 1, least=2)] == [[1, 2, 3]]


@pytest.mark.slow
def test_hiding_separators_is_hiding_them(bundled, prompts):
    marks = separators_of(prompts)
    ds = separator_windows(bundled, prompts[:3], width=3)
    ti.check(ds)
    assert ds["intervention"].values.tolist() == ["all blocks", "blocks 0-2", "blocks 3-5", "blocks 6-7"]
    np.testing.assert_array_equal(ds["n_hidden"][0], ds["n_hidden"][1])
    whole = ds["kl"].sel(policy="separators")
    assert float(whole.min()) > 0
    ids = np.asarray(prompts.ids(1))
    places = np.flatnonzero(np.isin(ids, marks)).tolist()
    by_hand = [E.knock_out([p], blocks=range(3, 6)) for p in places]
    change = losses(bundled, ids, by_hand) - losses(bundled, ids)
    expected = float(change[places[0] :].mean())
    got = ds["loss_change"].sel(policy="separators", intervention="blocks 3-5")[1]
    assert float(got) == pytest.approx(expected, abs=1e-4)
    one = separator_windows(bundled, prompts[:3], width=3, batch_tokens=1)
    np.testing.assert_allclose(one["kl"], ds["kl"], rtol=1e-3, atol=1e-4)


def test_random_tokens_that_are_hidden_are_others():
    ids = torch.tensor([[0, 5, 6, 9, 7, 8, 9, 5, 6, 7, 9, 8]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    drawn = [Hidden((9,), random=True, seed=s).keys(ids, mask)[0] for s in range(8)]
    assert all(int(d.sum()) == 3 and not d[0] and not d[ids[0] == 9].any() for d in drawn)
    assert any(not torch.equal(drawn[0], d) for d in drawn)
    keep = Hidden((9,))(ids, mask)[0]
    assert bool(keep[3, 3])
    assert not keep[4:, 3].any()


def test_segments_of_texts_that_are_not_finite_are_left_out():
    texts = ["Going, another. Nothing; whatever", "One, two or three; more.", "Days, nights, moons."] * 2
    lm, tokenizer = tiny_lm("llama"), byte_tokenizer()
    with torch.no_grad():
        lm.model.embed_tokens.weight[tokenizer("Z", add_special_tokens=False)["input_ids"][-1]] = torch.nan
    model = ti.wrap(lm, tokenizer, id="broken")
    good, more = (ti.Prompts.from_texts(t, model) for t in (texts, [*texts, "Zebras, another. Nothing; whatever"]))
    ds, wanted = segment_probe(model, more, layers=[0, 2], folds=3), segment_probe(model, good, layers=[0], folds=3)
    assert int(ds["n_segments"]) == int(wanted["n_segments"]) > 0
    assert ds["explained"].notnull().all()


def test_texts_without_separators_are_refused():
    for function in (segment_probe, separator_windows):
        with pytest.raises(ValueError, match="no separator"):
            function(tiny(), ti.Prompts.from_ids([np.full(12, 100)], tiny()))


def test_hiding_separators_is_that_of_a_loop(long_model, marked_texts):
    n = long_model.info.n_layers
    ds = separator_windows(long_model, marked_texts, width=n)
    np.testing.assert_allclose(ds["kl"].isel(intervention=0), ds["kl"].isel(intervention=1), atol=1e-6)
    marks = separators_of(marked_texts)
    ids = np.asarray(marked_texts.ids(0))
    places = [int(k) for k in np.flatnonzero(np.isin(ids, marks))]
    edits = [E.knock_out([k], list(range(k + 1, len(ids)))) for k in places if k + 1 < len(ids)]
    behind = list(range(places[0], len(ids) - 1))
    change = (losses(long_model, ids, edits) - losses(long_model, ids))[behind]
    one = ds.sel(policy="separators").isel(intervention=0, prompt=0)
    assert float(one["loss_change"]) == pytest.approx(change.mean(), abs=1e-4)
    assert ds["n_hidden"].isel(prompt=0).values.tolist() == [len(places)] * 2
    with torch.no_grad():
        p, q = (
            long_model.unembed(streams(long_model, ids, e)[-1][behind].float()).log_softmax(-1) for e in (edits, ())
        )
    assert float(one["kl"]) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    by = separator_windows(long_model, marked_texts, width=2)
    assert by["intervention"].values.tolist() == ["all blocks", "blocks 0-1", "blocks 2-2"]
