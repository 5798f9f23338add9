"""Tokens read ahead: a planted order, a loop over places, controls, refusals."""

import numpy as np
import pytest
import torch
from few_probes import model, text  # noqa: F401
from tiny import byte_tokenizer, some_prompts, tiny_lm

import tokinterp as ti
from tokinterp.erasure import fit_probes, future, future_tokens
from tokinterp.erasure.probe_text import label_ids


def cycles(n=40, length=24, types=12, seed=0):
    """Ids that count up in steps of one or two, so that token and step tell all that follows."""
    rng = np.random.default_rng(seed)
    starts, steps = rng.integers(0, types, n), rng.integers(1, 3, n)
    return ti.Prompts.from_ids([3 + (a + s * np.arange(length)) % types for a, s in zip(starts, steps, strict=True)])


def test_sums_are_those_of_a_loop_over_places(model):  # noqa: F811
    train, test, offsets = text(), text(n=5, length=14, seed=7), [1, 2, 4]
    probes = fit_probes(model, train, layers=[0, 2], offsets=offsets, method="lda", progress=False)
    sums = future._sums(probes, model, test, [0, 2], None, False)
    for i in range(len(test)):
        ids = test.ids(i)
        stream = model.run(torch.from_numpy(ids).long()[None], ti.resid([0, 2]))
        for k, layer in enumerate((0, 2)):
            x = probes.standardise(stream[ti.Site("resid", layer)][0], layer)
            hits, gains, ngram, places = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
            for t in range(len(ids)):
                right = True
                for j, o in enumerate(offsets):
                    if t + o >= len(ids):
                        continue
                    target = torch.tensor([ids[t + o]]).long()
                    read = probes.read(x[[t]], layer, o, target, standardised=True)
                    hit = int(read.rank) == 0
                    right &= hit
                    hits[j] += hit
                    ngram[j] += right
                    places[j] += 1
                    if not bool(read.log_prob.isnan()):
                        gains[j] -= float(read.log_prob)
            np.testing.assert_allclose(sums["hits"][i, k], hits)
            np.testing.assert_allclose(sums["ngram"][i, k], ngram)
            np.testing.assert_allclose(sums["loss"][i, k], gains, rtol=1e-4)
            np.testing.assert_allclose(sums["n"][i], places)
    seen = [label_ids(train, o) for o in offsets]
    for j, o in enumerate(offsets):
        labels = seen[j][seen[j] >= 0]
        count = np.bincount(labels, minlength=320)
        own = [label_ids(test, o)[test.starts[i] : test.starts[i + 1]] for i in range(len(test))]
        for i, row in enumerate(own):
            there = row[row >= 0]
            assert sums["unigram"][i, j] == (there == count.argmax()).sum()
            known = there[count[there] > 0]
            assert sums["unigram_loss"][i, j] == pytest.approx(-np.log(count[known] / count.sum()).sum())
            assert sums["n_seen"][i, j] == len(known)


def test_what_follows_from_the_token_is_read_and_nothing_of_it_in_any_order(model):  # noqa: F811
    ds = future_tokens(model, cycles(), cycles(n=12, seed=1), layers=[2], offsets=[1, 3, 5], method="lda")
    inside = ds["accuracy"].sel(condition="text", layer=2)
    token = ds["accuracy"].sel(condition="text", layer=0)
    assert float(token.max()) < 0.75, "from the token alone the step is not known"
    assert float(inside.min()) > float(token.max()) + 0.1, "and from its context it is"
    assert (ds["bigram_accuracy"].sel(condition="text") < 0.75).all()
    mixed = ds["accuracy"].sel(condition="shuffled")
    assert float(mixed.max()) < 0.35
    assert float(ds["gain"].sel(condition="text", layer=2).min()) > 0.5
    assert float(ds["gain"].sel(condition="shuffled").max()) < 0.4
    assert (ds["ngram_accuracy"].diff("offset") <= 0.02).all()
    assert (ds["ngram_accuracy"].isel(offset=0) == ds["accuracy"].isel(offset=0)).all()
    bounds = ds["accuracy_interval"]
    assert ((bounds[0] <= ds["accuracy"]) & (ds["accuracy"] <= bounds[1])).all()
    assert ds["layer"].values.tolist() == [0, 2]


def test_special_tokens_are_no_labels():
    tiny = ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="t")
    ids = [[1, 70, 80, 2, 70, 80], [1, 90, 70, 80, 1, 70]] * 3
    prompts = ti.Prompts.from_ids(ids, tiny)
    assert prompts.special_mask.sum() == 12
    probes = fit_probes(tiny, prompts, layers=[1], offsets=[1], method="lda", progress=False)
    sums = future._sums(probes, tiny, prompts, [1], None, False)
    assert sums["n"][:2, 0].tolist() == [2, 2]


def test_embeddings_are_predicted_as_by_the_ridge_of_scikit_learn(model):  # noqa: F811
    from sklearn.linear_model import Ridge

    train, test = text(n=20), text(n=4, length=14, seed=7)
    sums = future._embedding_sums(model, (train, test), [0, 2], 2, None, False)
    table = model.lm.get_input_embeddings().weight.detach().double().numpy()
    for k, layer in enumerate((0, 2)):
        x, y = [], []
        for p in (train, test):
            stream = [model.run(torch.from_numpy(p.ids(i)).long()[None], ti.resid([layer]))[ti.Site("resid", layer)][0]
                      for i in range(len(p))]  # fmt: skip
            x.append([s[:-2].double().numpy() for s in stream])
            y.append([table[p.ids(i)[2:]] for i in range(len(p))])
        own, goal = np.concatenate(x[0]), np.concatenate(y[0])
        fit = Ridge(future.RIDGE * own.var(0).mean() * len(own)).fit(own, goal)
        for i in range(len(test)):
            np.testing.assert_allclose(sums["error"][i, k], ((y[1][i] - fit.predict(x[1][i])) ** 2).sum(), rtol=1e-5)
            np.testing.assert_allclose(sums["total"][i, k], ((y[1][i] - goal.mean(0)) ** 2).sum(), rtol=1e-6)
    ds = future_tokens(model, cycles(), cycles(n=12, seed=1), layers=[2], offsets=[1], method="lda", embedding=True)
    share = ds["embedding_explained"]
    assert float(share.sel(condition="text", layer=2)) > float(share.sel(condition="text", layer=0)) + 0.04
    assert float(share.sel(condition="shuffled").max()) < 0.2
    assert (ds["embedding_explained_interval"][0] <= share).all()


def test_probes_of_both_conditions_are_kept_and_no_number_depends_on_where(model, tmp_path):  # noqa: F811
    given = {"layers": [2], "offsets": [1], "method": "lda"}
    found = [future_tokens(model, cycles(), cycles(n=12, seed=1), **given, **more)
             for more in ({}, {"store": tmp_path / "fits"}, {"store": tmp_path / "fits"})]  # fmt: skip
    assert len({ds.attrs["fingerprint"] for ds in found}) == 1
    kept = {name: ti.erasure.TokenProbes.load(tmp_path / "fits" / name, model) for name in future.CONDITIONS}
    assert kept["text"].facts["prompts"] == cycles().hash != kept["shuffled"].facts["prompts"]


def test_text_too_short_for_the_offset_is_refused(model):  # noqa: F811
    with pytest.raises(ValueError, match=r"offsets=\[1, 8\]: no token of test has a label 8 places ahead"):
        future_tokens(model, cycles(), some_prompts([5, 6]), offsets=[1, 8])
    with pytest.raises(ValueError, match="offsets"):
        future_tokens(model, cycles(), cycles(), offsets=[0, 1])
