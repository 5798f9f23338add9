"""Tokens that the model cannot repeat: a network that repeats all but planted ones, a loop by hand, cuts, refusals."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import embedding_indicators, glitch, repeat_templates, repeat_tokens

PLANTED = [60, 70, 90]  # single bytes and, below, a token of several
WHOLE = 262
ROWS = {"row": "{token}\n{token}\n{token}", "pair": "a {token}{token}"}


def repeating(planted=(*PLANTED, WHOLE)):
    """A network that says its last token again, but for those whose rows were never trained."""
    lm = tiny_lm("llama", tie_word_embeddings=True)
    with torch.no_grad():
        for block in lm.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        lm.model.norm.weight.fill_(1)
        rows = lm.get_input_embeddings().weight
        rows *= 4
        rows[list(planted)] *= 1e-3
    return ti.wrap(lm, byte_tokenizer(), id="repeating")


def found_of(model, percentile=2.5, unused=(*PLANTED, WHOLE)):
    return embedding_indicators(model, unused=list(unused), percentile=percentile)


def ask(model, **given):
    return repeat_tokens(model, **{"found": found_of(model), "indicator": "ein_l2", "templates": ROWS, **given})


def test_the_published_form():
    counts = {name: text.count("{token}") for name, text in repeat_templates().items()}
    assert counts == {"trials": 41, "explanation": 1, "copies": 101}
    texts = repeat_templates(trials=1)
    assert texts["trials"].endswith("\nOutput: «")
    assert texts["explanation"].endswith(" '")


def test_what_was_never_trained_is_found_and_nothing_else():
    model = repeating()
    ds = ask(model, n_controls=30)
    planted = [*PLANTED, WHOLE]
    verdict = ds["verdict"].values.astype(str)
    assert ds["is_candidate"].sel(indicator="ein_l2").values[planted].all()
    assert set(verdict[planted]) <= {"strong_verified", "weak_verified"}
    others = np.setdiff1d(np.flatnonzero(ds["asked_as"] != ""), planted)
    assert set(verdict[others]) <= {"strong_rejected", "weak_rejected"}
    trained = ds["trained"].values
    assert not trained[planted].any()
    np.testing.assert_array_equal(trained | np.isin(np.arange(320), planted), ds["reachability"] == "ok")
    share = ds["verified_share"]
    n = int(ds["n_asked"].sel(kind="candidate"))
    assert 4 <= n < 10
    assert float(share.sel(kind="candidate")) == pytest.approx(4 / n)
    assert float(share.sel(kind="control")) == 0
    controls = np.flatnonzero(ds["asked_as"] == "control")
    assert len(controls) == int(ds["n_asked"].sel(kind="control")) == 30
    assert not ds["is_candidate"].sel(indicator="ein_l2").values[controls].any()
    assert (ds["reachability"].values[controls] == "ok").all()
    assert ds["p_repeat"].notnull().all("template").sum() == n + 30
    value = ds["indicator_value"].sel(indicator="ein_l2").values
    assert float(ds["median_verified"]) == pytest.approx(np.median(value[planted]))
    assert int(ds["n_bytes_below"]) == sum(value[i] < np.median(value[planted]) for i in PLANTED)


def test_probabilities_are_the_highest_of_a_loop_over_steps():
    model = ti.wrap(tiny_lm("llama", tie_word_embeddings=True), byte_tokenizer(), id="random")
    ds = ask(model, n_tokens=3, n_controls=2)
    tokenizer, last = model.tokenizer, ti.Site("resid", model.info.n_layers)
    asked = np.flatnonzero(ds["asked_as"] != "")
    assert (ds["asked_as"] == "control").sum() == 2
    stands = tokenizer("ing", add_special_tokens=False)["input_ids"][0]
    for name, text in ROWS.items():
        built = tokenizer(text.replace("{token}", "ing"))["input_ids"]
        for token in asked[[0, 2, -1]].tolist():
            ids, best = [token if i == stands else i for i in built], 0.0
            for _ in range(3):
                with torch.no_grad():
                    said = model.unembed(model.run(torch.tensor([ids]), [last])[last][0, -1]).softmax(-1)
                best = max(best, float(said[token]))
                ids.append(int(said.argmax()))
            assert float(ds["p_repeat"].sel(vocab=token, template=name)) == pytest.approx(best, rel=1e-3)
    np.testing.assert_array_equal(ds["p_max"], ds["p_repeat"].max("template"))


def test_a_model_that_cannot_repeat_gives_no_verdict():
    model = ti.wrap(tiny_lm("llama", tie_word_embeddings=True), byte_tokenizer(), id="random")
    ds = ask(model)
    assert float(ds["verified_share"].sel(kind="control")) >= 0.5
    assert not ds.attrs["conclusive"]
    assert not {"strong_verified", "weak_verified"} & set(ds["verdict"].values)
    assert "inconclusive" in ds["verdict"].values
    np.testing.assert_array_equal(ds["trained"], ds["reachability"] == "ok")


def test_a_token_that_merges_with_what_stands_beside_it_cannot_be_asked_for():
    tokenizer = byte_tokenizer()
    letter = tokenizer("i", add_special_tokens=False)["input_ids"][0]
    model = repeating([letter])
    ds = ask(model, found=found_of(model, 0.3, [letter]), templates={"beside": "{token}ng {token}ng {token}ng"})
    assert ds["asked_as"].values[letter] == "candidate"
    assert ds["verdict"].values[letter] == "encoding_failed"
    assert ds["trained"].values[letter], "nothing is known of it"


def test_batches_and_stores_change_nothing(tmp_path):
    model = repeating()
    whole = ask(model)
    parts = ask(model, batch_tokens=24, store=tmp_path / "a.zarr", checkpoint_every=0)
    np.testing.assert_allclose(parts["p_repeat"], whole["p_repeat"], rtol=1e-4, atol=1e-7)
    again = ask(model, batch_tokens=24, store=tmp_path / "a.zarr")
    np.testing.assert_array_equal(again["p_repeat"], parts["p_repeat"])
    with pytest.raises(ValueError, match="seed"):
        ask(model, batch_tokens=24, store=tmp_path / "a.zarr", seed=1)


def test_verdicts_change_where_they_should():
    p = np.array([0.9, 0.901, 0.1, 0.11, 0.001, 0.0009, np.nan])
    can, cannot = np.ones(7, bool), np.zeros(7, bool)
    expected = ["weak_rejected", "strong_rejected", "weak_verified", "weak_rejected", "weak_verified",
                "strong_verified", "not_finite"]  # fmt: skip
    assert glitch.verdicts(p, can, True).tolist() == expected
    failed = ["encoding_failed" if "verified" in v else v for v in expected]
    assert glitch.verdicts(p, cannot, True).tolist() == failed
    assert glitch.verdicts(p, can, False).tolist() == ["inconclusive" if "verified" in v else v for v in expected]


def test_what_has_no_probability_is_no_token_that_is_repeated():
    model = repeating()
    found = found_of(model, 20)
    reach = found["reachability"].values.astype(str)
    found["n_bytes"] = found["n_bytes"] * 0 + 2
    candidates, controls = np.flatnonzero(reach == "ok")[:30], np.flatnonzero(reach == "ok")[30:34]
    p = np.full((34, 1), 1e-4)
    p[30:] = 0.99
    p[10:20] = np.nan
    can = np.ones(34, bool)
    ds = glitch._labelled(found, "ein_l2", candidates, controls, ["a"], p, can)
    assert ds.sizes["ranked"] == 20
    assert (ds["verified_near"] == 1).all()
    assert ds.attrs["cut_rule"] == "never below 2/3"
    assert not ds["shown"].values[candidates[10:20]].any()
    assert ds.attrs["conclusive"]
    p[30:] = np.nan
    ds = glitch._labelled(found, "ein_l2", candidates, controls, ["a"], p, can)
    assert not ds.attrs["conclusive"], "controls were asked for and said nothing"
    assert glitch._labelled(found, "ein_l2", candidates, controls[:0], ["a"], p[:30], can[:30]).attrs["conclusive"]


def test_the_display_cut_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    for n in (26, 60, 200):
        value, low = np.sort(rng.random(n)), rng.random(n) < np.linspace(1.1, 0, n)
        i = 12
        while sum(low[i - 12 : i + 13]) / 25 >= 2 / 3:
            i += 1
        assert glitch.display_cut(value, low) == (value[i - 1], "published")
    assert glitch.display_cut(np.arange(5.0), np.array([1, 1, 0, 0, 0], bool)) == (1.0, "narrow window")
    assert glitch.display_cut(np.array([0.5]), np.array([False])) == (0.5, "narrow window")
    for n in (0, 1, 30):
        cut, rule = glitch.display_cut(np.arange(float(n)), np.ones(n, bool))
        assert np.isnan(cut)
        assert rule == "never below 2/3"


def test_what_does_not_fit_is_refused():
    model = repeating()
    for given, message in (
        ({"templates": {"a": "no place"}}, r"templates: 'a' has no \{token\}"),
        ({"templates": {}}, r"templates=\{\}: give at least 1"),
        ({"templates": {"a": "x" * 62 + "{token}"}}, r"'a' has 64 tokens, and repeating a context of 64: give shorter"),
        ({"indicator": "eout"}, "indicator='eout': there are ein_l2"),
        ({"found": found_of(repeating([5]))}, "found is of repeating with other weights than repeating"),
        ({"found": ask(model)}, "found is a result of repeat_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(model, **given)


def test_a_vocabulary_without_a_placeholder_is_refused(monkeypatch):
    monkeypatch.setattr(glitch, "PLACEHOLDERS", 0)
    with pytest.raises(ValueError, match="templates: no token of letters stays itself"):
        ask(repeating())
