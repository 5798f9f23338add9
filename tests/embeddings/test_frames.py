"""Words and concepts as frames: identities, the shipped model's known values, a loop over words, controls, refusals."""

import copy

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import frames, whitened_unembedding, word_frames

SEE = {"see": [" telescope", " microscope", " periscope", " stethoscope"], "water": [" river", " sea", " lake"]}
WORDS = {"a": ["river", " the ring", "aa"], "b": ["king", "sing it", "x"], "alone": ["z"]}


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def test_whitened_rows_have_mean_zero_and_unit_covariance(bundled, model):
    for one in (bundled, model):
        found = whitened_unembedding(one)
        there = torch.ones(len(found.rows), dtype=torch.bool)
        if one is bundled:
            assert found.rank == 192
            assert not found.rows[2].any(), "the row of the padding token"
            there[2] = False
        eye = torch.eye(found.rank, dtype=torch.float64)
        torch.testing.assert_close(torch.cov(found.rows[there].T), eye, rtol=0, atol=2e-3)
        torch.testing.assert_close(found.rows[there].mean(0), torch.zeros(found.rank).double(), rtol=0, atol=2e-3)
    some = np.arange(320) < 200
    rows = whitened_unembedding(model, trained=some).rows
    torch.testing.assert_close(torch.cov(rows[:200].T), torch.eye(32).double(), rtol=0, atol=1e-9)


def test_the_inner_product_of_one_token_is_the_causal_one(model):
    rows = whitened_unembedding(model).rows
    w = model.lm.get_output_embeddings().weight.detach().double()
    w = w - w.mean(0)
    torch.testing.assert_close(rows @ rows.T, w @ torch.linalg.inv(torch.cov(w.T)) @ w.T, rtol=1e-6, atol=1e-8)


def test_the_shipped_model_has_the_known_values(bundled):
    ds = word_frames(bundled, SEE, leave_out=False)
    np.testing.assert_allclose(ds["projection"][:4], [11.108, 9.383, 5.720, 9.865], atol=2e-2)
    assert ds["n_tokens"].max() == 4
    rows, rng = whitened_unembedding(bundled).rows, np.random.default_rng(0)
    triples = torch.from_numpy(rng.integers(3, 4096, (2000, 3)))
    triples[::7, 1] = triples[::7, 0]
    distinct = [len(set(t)) for t in triples.tolist()]
    assert torch.linalg.matrix_rank(rows[triples]).tolist() == distinct


def test_values_are_those_of_a_loop_over_words(model):
    ds, rows = word_frames(model, WORDS), whitened_unembedding(model).rows.numpy()
    encode = lambda w: model.tokenizer(w, add_special_tokens=False)["input_ids"]  # noqa: E731
    at = 0
    for own in WORDS.values():
        for word in own:
            mates = [rows[encode(w)] for w in own if w != word]
            f = rows[encode(word)]
            if not mates:
                assert np.isnan(ds["projection"][at])
                assert np.isnan(ds["cosine"][at])
                at += 1
                continue
            total = np.zeros((max(map(len, mates)), 32))
            for m in mates:
                total[: len(m)] += m
            u, s, vh = np.linalg.svd(total, full_matrices=False)
            c = (u * (s > 1e-10 * s[0])) @ vh
            k = min(len(f), len(c))
            product, n = (f[:k] * c[:k]).sum(), (np.linalg.norm(c, axis=1) > 0).sum()
            assert float(ds["projection"][at]) == pytest.approx(product / np.sqrt(len(f) * n))
            assert float(ds["cosine"][at]) == pytest.approx(product / np.linalg.norm(f) / np.linalg.norm(c))
            distinct = int(ds["n_distinct"][at])
            assert float(ds["relative_rank"][at]) == pytest.approx(distinct / len(f))
            at += 1
    assert ds.sizes["word"] == at
    assert float(ds["orthogonality"].sel(word=2)) == pytest.approx(1), "two equal columns"
    assert np.isnan(ds["orthogonality"].sel(word=at - 1)), "one column"


def test_a_concept_frame_is_orthonormal_and_no_wider_than_its_words(model):
    rows = whitened_unembedding(model).rows
    words = torch.zeros(3, 5, 32, dtype=torch.float64)
    for n, ids in enumerate(([70, 80, 90], [100, 110], [120])):
        words[n, : len(ids)] = rows[ids]
    found = frames._concept_frames(words, np.zeros(3, int), np.array([3, 2, 1]), False)[0]
    torch.testing.assert_close(found @ found.T, torch.diag(torch.tensor([1.0, 1, 1, 0, 0]).double()))
    assert frames.compare_frames(found[None], found[None])[0] == pytest.approx(1)


def test_controls_are_other_words_and_random_columns_as_long(model, monkeypatch):
    seen, real = [], frames.compare_frames
    monkeypatch.setattr(frames, "compare_frames", lambda f, g: seen.append((f, g)) or real(f, g))
    ds = word_frames(model, WORDS)
    (own, _), (other, _), (random, _) = seen
    torch.testing.assert_close(random.norm(dim=2), own.norm(dim=2))
    assert not torch.allclose(random, own)
    concept = ds["concept"].values
    for n in range(len(own)):
        same = [m for m in range(len(own)) if torch.equal(other[n], own[m])]
        assert same
        assert all(concept[m] != concept[n] for m in same)
    again = word_frames(model, WORDS, seed=1)
    assert not np.array_equal(again["cosine_random"], ds["cosine_random"])


def test_words_of_one_token_have_no_angle_between_columns(model):
    rows = whitened_unembedding(model).rows
    assert np.isnan(frames._mean_cosine(rows[:, None])).all(), "whatever their lengths round to"


def test_random_columns_lie_where_rows_of_the_head_can():
    lm = tiny_lm("llama")
    with torch.no_grad():
        lm.get_output_embeddings().weight[:, 4:] = 0
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        real = frames.compare_frames
        patch.setattr(frames, "compare_frames", lambda f, g: seen.append(f) or real(f, g))
        word_frames(ti.wrap(lm, byte_tokenizer(), id="flat"), WORDS)
    assert (seen[0][..., 4:].abs() < 1e-9).all()
    assert (seen[2][..., 4:].abs() < 1e-9).all()
    torch.testing.assert_close(seen[2].norm(dim=2), seen[0].norm(dim=2))


def test_a_head_without_directions_and_a_padding_token_beyond_it():
    lm, tokenizer = tiny_lm("llama"), copy.deepcopy(byte_tokenizer())  # which other tests have, too
    model = ti.wrap(lm, tokenizer, id="m")
    rows = whitened_unembedding(model).rows
    tokenizer.add_tokens([f"<{n}>" for n in range(60)])
    tokenizer.pad_token = "<59>"
    assert tokenizer.pad_token_id >= model.info.d_vocab
    torch.testing.assert_close(whitened_unembedding(ti.wrap(lm, tokenizer, id="m")).rows, rows)
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(1e-4)
    with pytest.raises(ValueError, match="model=m: the rows of its head vary by less than 1e-06 in every direction"):
        whitened_unembedding(ti.wrap(lm, byte_tokenizer(), id="m"))


def test_what_does_not_fit_is_refused(model):
    for given, message in (
        ({"concepts": {"a": ["x"]}}, r"concepts=\{'a': \['x'\]\}: give at least 2"),
        ({"concepts": {"a": ["xyz"], "b": ["xy"]}, "max_tokens": 1}, "max_tokens=1: no word is as short"),
        ({"concepts": {"a": ["xyz"], "b": ["x"]}, "max_tokens": 1}, "concepts: only one has words of at most 1"),
        ({"concepts": WORDS, "trained": np.ones(3, bool)}, r"trained: bool of shape \(3,\): give 320 bools"),
    ):
        with pytest.raises(ValueError, match=message):
            word_frames(model, **given)
