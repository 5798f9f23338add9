"""Concepts of one token: planted directions, controls, places of the states, words, refusals."""

import numpy as np
import pytest
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import concepts, token_concepts
from tokinterp.embeddings.senses import tell_senses

THE = byte_tokenizer()(" the", add_special_tokens=False)["input_ids"][0]
TEXTS = [f"{'abcdefgh'[n % 8]} river {n} to the sea and the king {n}" for n in range(24)]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def ask(model, **given):
    settings = {"prompts": TEXTS, "token": THE, "layer": 1, "n_concepts": 3, "methods": ["k-means", "simple"], **given}
    return token_concepts(model, **settings)


def planted(n=120, k=5, d=24, seed=0):
    """Sums of one or two of some directions, with weights above zero."""
    rng = np.random.default_rng(seed)
    atoms = np.linalg.qr(rng.standard_normal((d, d)))[0][:k]
    codes = np.where(rng.random((n, k)) < 0.35, 10 + 20 * rng.random((n, k)), 0)
    codes[np.arange(n), rng.integers(0, k, n)] += 10
    return codes @ atoms, atoms


def test_planted_directions_are_found_and_controls_do_worse():
    z, atoms = planted()
    fitted = np.arange(90)
    made = {name: concepts._fit(name, z, fitted, 5, 1.0, 0) for name in concepts.METHODS}
    units = made["semi-nmf"].atoms / np.linalg.norm(made["semi-nmf"].atoms, axis=1, keepdims=True)
    near = units @ atoms.T
    assert near.max(0).min() > 0.98, "each planted direction, its sign included"
    assert len(set(near.argmax(1))) == 5
    share = {n: concepts._explained(z, m.made, fitted, np.arange(90, 120)) for n, m in made.items()}
    assert share["semi-nmf"] > 0.95
    assert share["semi-nmf"] > share["k-means"]
    assert max(share["random"], share["shuffled"]) < share["semi-nmf"] - 0.1
    for name in ("semi-nmf", "shuffled", "k-means", "simple", "random"):
        assert (made[name].codes >= 0).all(), name


def test_random_directions_are_not_beaten_by_the_mean_alone():
    z, _ = planted()
    share = [concepts._explained(x, concepts._fit("random", x, np.arange(90), 5, 1.0, 0).made, np.arange(90),
                                 np.arange(90)) for x in (z, z + 1000)]  # fmt: skip
    assert share[0] == pytest.approx(share[1], rel=1e-6)
    assert 0 < share[0] < 0.5


def test_overlap_of_equal_and_of_other_words():
    assert concepts.overlap([["a", "b"]] * 4) == 1
    assert concepts.overlap([["a"], ["b"], ["c"]]) == 0
    assert concepts.overlap([["a", "b"], ["b"]]) == pytest.approx((0.5 + 1) / 2)
    assert np.isnan(concepts.overlap([[], []]))


def test_states_are_those_at_or_before_the_first_place(model, monkeypatch):
    seen, real = [], concepts.states
    monkeypatch.setattr(concepts, "states", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    for position, before in (("at", 0), ("predicting", 1)):
        ds = ask(model, position=position)
        for n, (prompt, at) in enumerate(zip(seen[-1]["prompt"].values, seen[-1]["position"].values, strict=True)):
            ids = prompts.ids(int(prompt)).tolist()
            assert at == ids.index(THE) - before, n
        assert ds.sizes["sample"] == len(TEXTS)


def test_a_state_that_sees_only_itself_is_none_of_the_samples(model):
    prompts = ti.Prompts.from_texts([" the end", "a the", *TEXTS], model, progress=False)
    for n, place in ((0, 1), (1, 2)):
        assert prompts.ids(n).tolist().index(THE) == place
    assert 0 not in ask(model, prompts=prompts, position="predicting")["sample_prompt"], "before it is only BOS"
    assert {0, 1} <= set(ask(model, prompts=prompts)["sample_prompt"].values)
    assert 1 in ask(model, prompts=prompts, position="predicting")["sample_prompt"]
    bare = ti.Prompts.from_ids([[THE, 70, THE], [THE, 70], *(prompts.ids(n)[1:] for n in range(2, 26))], model)
    where, at = concepts._places(bare, THE, "at")
    assert at[0] == 2, "the next place of it"
    assert 1 not in at
    assert not where[bare.starts[:-1]].any()


def test_a_sample_that_a_concept_is_not_active_in_is_none_of_its_samples(model, monkeypatch):
    monkeypatch.setattr(concepts, "_words", lambda *_: [["b"], ["a"], ["f"]])
    codes = np.zeros((24, 3))
    codes[[1, 9], 0] = 2, 1
    codes[:, 2] = -1
    made = concepts.Dictionary(np.zeros((3, 32)), codes, np.zeros((24, 32)))
    monkeypatch.setattr(concepts, "_fit", lambda *_: made)
    ds = ask(model, methods=["pca"], held_out=0.0)
    assert ds["top_sample"].values[0].tolist() == [[1, 9, -1, -1, -1], [-1] * 5, [-1] * 5]
    assert float(ds["precision"][0]) == 1, "concepts that are never active are left out"


def test_what_is_held_out_is_not_fitted(model, monkeypatch):
    z, _ = planted()
    changed = z.copy()
    changed[90:] += 50
    for name in concepts.METHODS:
        one, two = (concepts._fit(name, x, np.arange(90), 5, 1.0, 0) for x in (z, changed))
        np.testing.assert_allclose(one.atoms, two.atoms, err_msg=name)
    ds = ask(model, held_out=0.25)
    assert int(ds["fitted"].sum()) == 18
    assert np.isnan(ask(model, held_out=0.0)["explained_held_out"]).all()


def test_words_near_samples_are_counted_with_those_of_the_next_concept_as_chance(model, monkeypatch):
    letters = [["b"], ["c"], ["f"]]
    monkeypatch.setattr(concepts, "_words", lambda *_: letters)
    rows = np.array(["abcdefgh".index(t[0]) for t in TEXTS])
    codes = np.stack([rows == n for n in (1, 2, 5)], 1) + 0.0
    made = concepts.Dictionary(np.zeros((3, 32)), codes, np.zeros((24, 32)))
    monkeypatch.setattr(concepts, "_fit", lambda *_: made)
    monkeypatch.setattr(concepts, "SAMPLES", 3)
    ds = ask(model, methods=["pca"], held_out=0.0)
    assert float(ds["precision"][0]) == 1
    assert float(ds["precision_null"][0]) == 0
    assert {TEXTS[i][0] for i in ds["top_sample"].values[0, 1].tolist()} == {"c"}


def test_words_are_what_the_head_reads(model):
    atoms = np.random.default_rng(0).standard_normal((2, 32))
    import torch

    x = torch.from_numpy(atoms).float()
    vocabulary = ti.Prompts.from_texts(TEXTS, model, progress=False).vocabulary
    for norm, read in ((True, model.unembed), (False, model.head)):
        found = concepts._words(model, vocabulary, atoms, norm, 5)
        for own, logits in zip(found, read(x), strict=True):
            ids = logits.argsort(descending=True)[:50].tolist()
            expected = [w[1:] for w in vocabulary.strings(ids) if w in (" the", " and", " river")]
            assert [w for w in own if w in ("the", "and", "river")] == expected


def test_senses_of_texts_are_those_of_their_states(model):
    senses = ["" if n == 3 else "even" if n % 2 else "odd" for n in range(24)]
    texts = [t.replace("river", "sing") if n % 2 else t for n, t in enumerate(TEXTS)]
    ds = ask(model, prompts=texts, token=THE, methods=["pca"], senses=senses, held_out=0.4, layer=3)
    assert ds["sense"].values.tolist() == ["even", "odd"]
    prompts = ds["sample_prompt"].values
    told = np.array(senses, object)[prompts]
    expected = tell_senses(ds["code"].values[0], told, ds["fitted"].values)
    np.testing.assert_allclose(ds["auroc"][0], expected[0])
    assert float(ds["auroc"].min()) > 0.8
    for wrong in (["a", "b"], ["a"] * 24):
        with pytest.raises(ValueError, match=r"senses: .* give one for each of 24 texts, of two or more senses"):
            ask(model, senses=wrong)


def test_windows_of_a_document_are_on_one_side(model):
    texts = [f"{t} and the {n} the sea" for n, t in enumerate(TEXTS)]
    prompts = ti.Prompts.from_texts(texts, model, max_tokens=12, on_long="window", progress=False)
    ds = ask(model, prompts=prompts, held_out=0.25, senses=["odd", "even"] * 12)
    document = prompts.documents[ds["sample_prompt"].values]
    assert len(document) > len(np.unique(document)) == 24
    fitted = ds["fitted"].values
    assert not set(document[fitted]) & set(document[~fitted])
    assert len(set(document[~fitted])) == 6
    with pytest.raises(ValueError, match="senses: the token stands in texts of 1 of them: give texts of two or more"):
        ask(model, prompts=[*TEXTS, "a"], senses=[*["odd"] * 24, "even"])


def test_codes_that_do_not_converge_are_counted_and_warn_of_nothing():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60, 1)) @ rng.standard_normal((1, 12)) + 50 + 1e-3 * rng.standard_normal((60, 12))
    assert concepts._fit("semi-nmf", z, np.arange(40), 8, 1e-5, 0).unfinished > 0
    easy, _ = planted()
    assert concepts._fit("semi-nmf", easy, np.arange(90), 5, 1.0, 0).unfinished == 0


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match="layer=0: the 24 states are all equal there, whatever the text"):
        ask(model, layer=0)
    for given, message in (
        ({"token": 400}, "token=400: tiny has ids below 320"),
        ({"token": 319}, "token=319 stands in 0 texts"),
        ({"n_concepts": 24}, "stands in 24 texts: give more, or fewer than 24 n_concepts"),
        ({"methods": ["nmf"]}, "methods"),
        ({"position": "after"}, "position='after'"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(model, **given)
