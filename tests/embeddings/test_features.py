"""Sparse features: planted directions and labels, controls, units, splits, refusals."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import features, token_features

TEXTS = [f"{'the river' if n % 2 else 'to the king'} {'abcdefgh'[n % 8]} and {n}" for n in range(24)]
TOPICS = ["water" if n % 2 else "court" for n in range(24)]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def ask(model, **given):
    settings = {"prompts": TEXTS, "labels": TOPICS, "layer": 1, "n_features": 6, "steps": 5, **given}
    return token_features(model, **settings)


def planted(n=1500, k=6, d=16, seed=0):
    """Sums of few of some directions, with weights above zero."""
    rng = np.random.default_rng(seed)
    atoms = np.linalg.qr(rng.standard_normal((d, d)))[0][:k]
    codes = np.where(rng.random((n, k)) < 0.2, 1 + rng.random((n, k)), 0)
    return torch.from_numpy(codes @ atoms + 0.5).float(), torch.from_numpy(atoms).float(), codes


def fit(name, x, m=6, steps=600, seed=0, penalty=0.1):
    return features._fit(name, x, m, penalty, steps, seed)


def test_planted_directions_are_found_again_from_any_seed_and_controls_do_worse():
    x, atoms, codes = planted()
    one, two = fit("learned", x), fit("learned", x, seed=1)
    assert (atoms @ one.decoder.T).max(1).values.min() > 0.97
    assert features._nearest(one.decoder, two.decoder).min() > 0.97
    torch.testing.assert_close(one.decoder.norm(dim=1), torch.ones(6))
    found = one.codes(x)
    assert bool((found >= 0).all())
    own = (atoms @ one.decoder.T).argmax(1)
    active = (found[:, own] > 0).numpy() == (codes > 0)
    assert active.mean() > 0.95, "a feature is active where its direction is in the state"
    share = {}
    for name in features.DICTIONARIES:
        made = fit(name, x)
        share[name] = features._explained(x, made.made(made.codes(x)), made.middle)
    assert share["learned"] > 0.85
    assert max(share["random"], share["shuffled"]) < share["learned"] - 0.2
    frozen = fit("random", x, steps=0).decoder
    torch.testing.assert_close(fit("random", x, steps=9).decoder, frozen)
    assert features._nearest(frozen, fit("random", x, steps=0, seed=1).decoder).mean() < 0.8


def test_shift_and_scale_of_the_states_leave_codes_alone():
    x, _, _ = planted(n=300)
    one, two = fit("learned", x, steps=30), fit("learned", 7 * x + 100, steps=30)
    torch.testing.assert_close(two.codes(7 * x + 100), one.codes(x), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(two.made(two.codes(7 * x + 100)), 7 * one.made(one.codes(x)) + 100, rtol=1e-3, atol=5e-2)


def test_a_larger_penalty_leaves_fewer_features_active():
    x, _, _ = planted(n=600)
    active = [float((fit("learned", x, penalty=p).codes(x) > 0).sum(1).float().mean()) for p in (0.0, 0.1, 0.6)]
    assert active[0] > active[1] > active[2]


def test_labels_are_read_off_the_feature_that_says_them_and_not_off_permuted_ones():
    rng = np.random.default_rng(0)
    codes, answers = rng.random((400, 8)) * (rng.random((400, 8)) < 0.3), rng.integers(0, 3, 400)
    codes[np.arange(400), answers] += 1
    own = np.arange(400) < 300
    found = features._read_labels(codes, answers, own, 1.0, 0)
    assert (np.abs(found.weight).argmax(1) == np.arange(3)).all()
    assert (found.best == answers)[~own].mean() > 0.9
    assert (features._read_labels(codes, answers, own, 0.02, 0).weight != 0).sum() < (found.weight != 0).sum()
    shuffled = features._permuted(answers, own, rng)
    assert sorted(shuffled[own]) == sorted(answers[own])
    assert (shuffled[~own] == answers[~own]).all()
    assert (features._read_labels(codes, shuffled, own, 1.0, 0).best == answers)[~own].mean() < 0.55


def test_scores_are_of_texts_that_nothing_is_fitted_to(model, monkeypatch):
    rows, real = [], features._fit
    monkeypatch.setattr(features, "_fit", lambda name, x, *a: rows.append(x) or real(name, x, *a))
    ds = ask(model, held_out=0.25, dictionaries=["learned"])
    assert ds.attrs["n_held_out"] == 6
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    left = np.setdiff1d(np.arange(24), np.random.default_rng(0).permutation(24)[:6])
    assert len(rows[0]) == sum(prompts.lengths[n] - 1 for n in left), "tokens but BOS of the other texts"
    whole = ask(model, dictionaries=["learned"])
    assert whole.attrs["n_held_out"] == 7
    assert 0 <= float(whole["accuracy"][0]) <= 1
    assert np.isfinite(whole["accuracy_interval"]).all()


def test_massive_states_are_no_part_of_what_is_explained(monkeypatch):
    lm = tiny_lm("llama")
    model, rows, real = ti.wrap(lm, byte_tokenizer(), id="tiny"), [], features._fit
    ids = [[40, *row] for row in np.random.default_rng(0).integers(50, 90, (24, 9)).tolist()]
    monkeypatch.setattr(features, "_fit", lambda name, x, *a: rows.append(x) or real(name, x, *a))
    given = {"prompts": ti.Prompts.from_ids(ids, model), "layer": 0, "steps": 200, "n_features": 16}
    with torch.no_grad():
        lm.get_input_embeddings().weight[40] *= 1000
    ds = ask(model, **given)
    assert len(rows[0]) == 17 * 9, "of seven of ten texts, without the massive first ones"
    assert float(ds["explained"].sel(dictionary="shuffled")) < 0.9
    labels = ["" if n == 40 else "low" if n < 70 else "high" for n in np.concatenate(ids).tolist()]
    said = ask(model, **given, labels=labels, dictionaries=["learned"])
    assert float(said["accuracy"][0]) > float(said["accuracy_frequent"]) + 0.1, "labels are those of their tokens"


def test_windows_of_a_document_are_on_one_side_and_one_unit(model):
    prompts = ti.Prompts.from_texts(TEXTS, model, max_tokens=8, on_long="window", progress=False)
    assert len(prompts) > len(TEXTS)
    assert ask(model, prompts=prompts, held_out=0.25).attrs["n_held_out"] == 6
    rng = np.random.default_rng(0)
    side = features._split(prompts.documents, 0.25, rng)
    assert all(len(set(side[prompts.documents == n])) == 1 for n in range(24))


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_where_codes_lie_does_not_matter_and_rare_labels_stay_rare(strength):
    rng = np.random.default_rng(0)
    answers, own = (rng.random(400) < 0.2).astype(int), np.arange(400) < 200
    x = rng.standard_normal((400, 10))
    x[:, 0] += 2 * answers
    found = [features._read_labels(x + shift, answers, own, strength, 0) for shift in (0, 30)]
    np.testing.assert_allclose(found[1].weight, found[0].weight, atol=1e-3)
    np.testing.assert_allclose(found[1].score, found[0].score, atol=1e-2)
    noise = features._read_labels(rng.standard_normal((400, 4)), answers, own, 0.02, 0)
    assert (noise.best == 0).all(), "without a weight the frequent label is said"


def test_means_of_texts_are_read_and_not_single_tokens(model, monkeypatch):
    seen, real = [], features._read_labels
    monkeypatch.setattr(features, "_read_labels", lambda codes, *a: seen.append(codes) or real(codes, *a))
    ask(model, dictionaries=["learned"])
    found = ti.states(model, ti.Prompts.from_texts(TEXTS, model, progress=False), [1])
    x, prompt = found["state"].values[:, 0], found["prompt"].values
    for n in range(24):
        np.testing.assert_allclose(seen[-1][n], x[prompt == n].mean(0, dtype=float), rtol=1e-5, atol=1e-6)


def test_tokens_with_labels_of_their_own(model):
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    strings = [s for n in range(len(prompts)) for s in prompts.strings(n)]
    labels = ["" if s.strip().isdigit() else "space" if s.startswith(" ") else "none" for s in strings]
    ds = ask(model, prompts=prompts, labels=labels, layer=0, n_features=64, steps=200, dictionaries=["learned"])
    assert float(ds["accuracy"][0]) > max(float(ds["accuracy_frequent"]), float(ds["accuracy_shuffled"][0])) + 0.05
    assert float(ds["auroc"].min()) > 0.8
    assert ds["label"].values.tolist() == ["none", "space"]
    special = np.flatnonzero(prompts.special_mask)
    assert ds.attrs["n_held_out"] < prompts.n_tokens - len(special) - sum(x == "" for x in labels)


def test_features_of_single_types_are_pure_and_chance_is_that_of_random_tokens(model):
    assert features._purity(np.array([[1, 1, 1, 2], [1, 2, 3, 4]])).tolist() == [0.75, 0.25]
    ds = ask(model, layer=0, n_features=16, steps=300, penalty=0.02, dictionaries=["learned"])
    alive = ds["density"][0] > 0
    assert float(ds["purity"][0][alive].mean()) > float(ds["purity_null"]) + 0.2
    code = ds["top_code"].values[0]
    assert (np.diff(code, axis=1) <= 0).all()
    assert float(ds["share_dead"][0]) == pytest.approx(1 - float(alive.mean()))
    assert float(ds["density"].sum("feature")[0]) == pytest.approx(float(ds["n_active"][0]))


def test_a_feature_that_is_active_in_fewer_than_ten_tokens_has_no_purity(model):
    ds = ask(model, n_features=16, steps=300, penalty=0.9, dictionaries=["learned"])
    code = ds["top_code"].values[0]
    assert (code[:, -1] > 0).any()
    assert ((code[:, 0] > 0) & (code[:, -1] == 0)).any()
    assert (np.isnan(ds["purity"].values[0]) == (code[:, -1] == 0)).all()
    assert ((ds["top_token"].values[0] == "") == (code == 0)).all()


def test_ten_random_tokens_are_ten_places(model):
    prompts = ti.Prompts.from_ids(np.arange(20, 164).reshape(24, 6).tolist(), model)
    assert float(ask(model, prompts=prompts, dictionaries=["learned"])["purity_null"]) == pytest.approx(0.1)


def test_what_does_not_fit_is_refused(model):
    for given, message in (
        ({"labels": ["a", "b"]}, "labels: 2 of them: give one for each of 24 documents, or of"),
        ({"labels": ["a"] * 24}, r"labels: \['a'\] of what is fitted"),
        ({"labels": [1] * 24}, "labels"),
        ({"layer": 9}, "layers"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"dictionaries": ["pca"]}, "'pca' is none of"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(model, **given)
